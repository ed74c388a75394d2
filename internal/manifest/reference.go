package manifest

import (
	"fmt"
	"strings"

	"imprint"
)

// Reference returns the reference of all manifest fields as Markdown, made from
// the table that the reader uses.
func Reference() string {
	var b strings.Builder
	b.WriteString("# The instance manifest\n\n" +
		"An instance is declared in YAML, several of them in one file as documents separated by `---`.\n" +
		"Text stays as it is written, with or without quotes: `12:30:45`, `yes` and `1e3` are not converted.\n" +
		"Unknown fields, anchors, aliases and tags are refused. Paths are relative to the manifest.\n\n" +
		"A duration is written like `90s`, `36h` or `7d`.\n\n" +
		"| field | value | meaning |\n|---|---|---|\n")
	rows(&b, "", fieldsOf(&Manifest{}))
	fmt.Fprintf(&b, "\nLimits: a file has at most %d bytes and %d instances; an instance has at most %d DNS names, %d addresses,\n"+
		"%d SSH keys, and as many for each of %d users, who have together %d bytes, %d metadata entries of %d bytes, %d bytes of user data and of vendor data, and %d parameters of %d bytes.\n",
		MaxFile, MaxInstances, imprint.MaxNames, imprint.MaxNames, imprint.MaxSSHKeys, imprint.MaxUsers, imprint.MaxUsersLen, imprint.MaxMetadata, imprint.MaxMetadataLen,
		imprint.MaxUserData, imprint.MaxParams, imprint.MaxParamLen)
	return b.String()
}

func rows(b *strings.Builder, path string, fields []field) {
	for _, f := range fields {
		at := join(path, f.name)
		if f.typ != "" {
			fmt.Fprintf(b, "| `%s` | %s | %s |\n", at, f.typ, strings.ReplaceAll(f.doc, "|", `\|`))
		}
		if strings.HasPrefix(f.typ, "list") {
			at += "[]"
		}
		rows(b, at, f.inner)
	}
}
