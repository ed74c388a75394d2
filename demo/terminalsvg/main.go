// Command terminalsvg draws what a terminal showed: it reads text with ANSI
// colours on standard input and writes an SVG. The README's picture is made
// with it, see "make recording".
package main

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"os"
	"regexp"
	"strings"
)

// Metrics of a 13-pixel monospaced font.
const (
	charWidth  = 8
	lineHeight = 19
	margin     = 18
	maxColumns = 128
)

// colours of the SGR codes that imprint prints, on a dark background.
func colour(code string) string {
	switch code {
	case "1":
		return `fill="#ffffff" font-weight="bold"`
	case "31":
		return `fill="#ff7b72"`
	case "32":
		return `fill="#7ee787"`
	case "33":
		return `fill="#e3b341"`
	case "2":
		return `fill="#8b949e"`
	}
	return ""
}

func main() {
	if err := draw(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "terminalsvg:", err)
		os.Exit(1)
	}
}

func draw(in io.Reader, out io.Writer) error {
	var lines []string
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		// Renderers fold spaces; these they keep.
		lines = append(lines, strings.NewReplacer("\r", "", " ", "\u00a0").Replace(scanner.Text()))
	}
	if err := scanner.Err(); err != nil {
		return err
	}
	width, height := maxColumns*charWidth+2*margin, len(lines)*lineHeight+2*margin
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">
<title>A machine is born: the output of make demo</title>
<rect width="100%%" height="100%%" rx="8" fill="#0d1117"/>
<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="13" fill="#c9d1d9">
`, width, height, width, height)
	for n, line := range lines {
		fmt.Fprintf(w, `<text x="%d" y="%d">%s</text>`+"\n", margin, margin+13+n*lineHeight, spans(line))
	}
	fmt.Fprint(w, "</g>\n</svg>\n")
	return w.Flush()
}

var sgr = regexp.MustCompile("\x1b\\[([0-9;]*)m")

// spans turns one line into tspans, cut at the last column.
func spans(line string) string {
	var b strings.Builder
	columns, style := 0, ""
	put := func(text string) {
		if room := maxColumns - columns; len([]rune(text)) > room {
			text = string([]rune(text)[:max(room-1, 0)]) + "…"
		}
		columns += len([]rune(text))
		if text == "" || columns > maxColumns {
			return
		}
		if style == "" {
			b.WriteString(html.EscapeString(text))
			return
		}
		fmt.Fprintf(&b, "<tspan %s>%s</tspan>", style, html.EscapeString(text))
	}
	for {
		at := sgr.FindStringSubmatchIndex(line)
		if at == nil {
			put(line)
			return b.String()
		}
		put(line[:at[0]])
		style = colour(line[at[2]:at[3]])
		line = line[at[1]:]
	}
}
