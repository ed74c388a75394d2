package dialect

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"imprint"
)

// mergeVendor returns inst with its vendor data as the first parts of its user data,
// for cloud-init before 0.7.6, which takes no vendor data from drives, and for what
// has no place for it. Of a setting that is in both, cloud-init takes what comes last: the
// user's. What is JSON without anything for cloud-init stays where it is.
func mergeVendor(inst *imprint.Instance) *imprint.Instance {
	parts := vendorParts(inst.Spec.VendorData)
	if len(parts) == 0 {
		return inst
	}
	merged := *inst
	merged.Spec.VendorData = ""
	if inst.Spec.UserData != "" {
		parts = append(parts, inst.Spec.UserData)
	}
	merged.Spec.UserData = multipart(parts)
	return &merged
}

// vendorParts returns what cloud-init takes for vendor data, as its
// sources.convert_vendordata does.
func vendorParts(data string) []string {
	var v any
	if json.Unmarshal([]byte(data), &v) != nil {
		v = data
	}
	if m, ok := v.(map[string]any); ok {
		v = m["cloud-init"]
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var parts []string
	for _, part := range list {
		if text, ok := part.(string); ok && text != "" {
			parts = append(parts, text)
		}
	}
	return parts
}

// multipart returns a MIME document (RFC 2046) of the parts, which tell by their first
// line what they are. One that is a MIME document itself goes in with its own parts.
func multipart(parts []string) string {
	boundary := fmt.Sprintf("imprint-%x", sha256.Sum256([]byte(strings.Join(parts, "\x00"))))
	var b strings.Builder
	fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=%q\nMIME-Version: 1.0\n", boundary)
	for _, part := range parts {
		fmt.Fprintf(&b, "\n--%s\n", boundary)
		if isMIME(part) {
			b.WriteString(strings.TrimLeft(part, "\r\n"))
			continue
		}
		b.WriteString("Content-Type: text/plain; charset=\"utf-8\"\nMIME-Version: 1.0\nContent-Transfer-Encoding: base64\n\n")
		text := base64.StdEncoding.EncodeToString([]byte(part))
		for ; len(text) > mimeLine; text = text[mimeLine:] {
			b.WriteString(text[:mimeLine] + "\n")
		}
		b.WriteString(text)
	}
	fmt.Fprintf(&b, "\n--%s--\n", boundary)
	return b.String()
}

// mimeLine is how long a line of base64 may be (RFC 2045 section 6.8).
const mimeLine = 76

// isMIME reports whether cloud-init takes text for a MIME document: it looks for this
// word at the start (cloudinit.user_data.convert_string).
func isMIME(text string) bool {
	return strings.Contains(strings.ToLower(text[:min(len(text), 4096)]), "mime-version:")
}
