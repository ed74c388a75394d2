package imprint_test

import (
	"go/build"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// imports is the import policy: for every package of the module, which others
// of the module it may import and which third-party modules. A package that is
// not listed fails the test, and so does a permission that nobody uses. Test
// files are free. The standard library is free to all.
var imports = []struct {
	pkg   string
	ours  string
	third string
}{
	{"imprint", "", ""},

	// Values and bytes; they know no network.
	{"internal/keybox", "imprint", ""},
	{"internal/durable", "", "golang.org/x/sys"},
	{"internal/cpio", "", ""},
	{"internal/osdef", "imprint internal/confine internal/durable internal/job internal/script", "go.yaml.in/yaml/v3 golang.org/x/sys"},
	{"internal/script", "imprint internal/confine", "golang.org/x/sys"},
	{"internal/blank", "imprint internal/disk", "golang.org/x/sys"},
	{"internal/peercred", "", "golang.org/x/sys"},
	{"internal/seal", "imprint internal/durable", ""},
	{"internal/spool", "imprint", ""},
	{"internal/manifest", "imprint", "go.yaml.in/yaml/v3 golang.org/x/crypto"},
	{"internal/dialect", "imprint", ""},

	// Those who decide, and those who sign. They meet only in internal/cli.
	{"internal/enrol", "imprint", ""},
	{"internal/ca", "imprint internal/durable", "golang.org/x/crypto golang.org/x/mod github.com/transparency-dev/formats github.com/transparency-dev/merkle github.com/transparency-dev/tessera"},
	{"internal/signer", "imprint internal/peercred", ""},
	{"internal/store", "imprint internal/durable", "go.etcd.io/etcd go.uber.org/zap golang.org/x/sys google.golang.org/grpc"},

	// Adapters: each speaks one protocol and never to each other at will.
	{"internal/triton", "imprint", "golang.org/x/time"},
	{"internal/host", "imprint internal/dhcp internal/dialect internal/keybox internal/metadata internal/tap internal/triton", "golang.org/x/sync golang.org/x/sys"},
	{"internal/metadata", "imprint internal/dialect", ""},
	{"internal/hostapi", "imprint internal/dialect", ""},
	{"internal/relay", "imprint internal/dialect internal/durable internal/host internal/hostapi internal/seal internal/spool", ""},
	{"internal/est", "imprint", "golang.org/x/crypto golang.org/x/time"},
	{"internal/tap", "imprint", "github.com/google/nftables github.com/vishvananda/netlink golang.org/x/sys"},
	{"internal/dhcp", "imprint", "github.com/insomniacslk/dhcp golang.org/x/time"},
	{"internal/media", "imprint internal/cpio internal/dialect", ""},
	{"internal/disk", "imprint", "golang.org/x/sys"},
	{"internal/varstore", "imprint", ""},
	{"internal/personalize", "imprint", "golang.org/x/sys"},
	{"internal/unpack", "imprint", "github.com/klauspost/compress github.com/therootcompany/xz golang.org/x/sys"},
	{"internal/image", "imprint internal/disk internal/durable internal/image/reader internal/image/sandbox", "aead.dev/minisign github.com/ProtonMail/go-crypto golang.org/x/sync golang.org/x/sys"},
	{"internal/image/reader", "internal/image/sandbox", "github.com/klauspost/compress github.com/therootcompany/xz"},
	{"internal/image/sandbox", "", "golang.org/x/sys"},
	{"internal/platform/qemu", "imprint", ""},
	{"internal/install", "imprint internal/disk internal/durable", "golang.org/x/sys"},

	// The helper VM: what both ends say, the host's side, the guest's, and the cage
	// for what it runs.
	{"internal/job", "imprint", ""},
	{"internal/helpervm", "imprint internal/cpio internal/disk internal/durable internal/job internal/platform/qemu", "github.com/klauspost/compress github.com/pierrec/lz4/v4 github.com/therootcompany/xz golang.org/x/sys"},
	{"internal/inside", "imprint internal/confine internal/job internal/repair internal/script internal/unpack", "golang.org/x/sys"},
	{"internal/repair", "imprint internal/disk internal/job", "golang.org/x/sys"},
	{"internal/confine", "imprint", "golang.org/x/sys"},

	// The operator's side.
	{"api", "imprint", ""},
	{"internal/server", "imprint api internal/peercred", "github.com/danielgtaylor/huma/v2 github.com/prometheus/client_golang"},

	// The guest's side: its list of third parties is short enough to read aloud.
	{"internal/guest", "imprint internal/blank internal/durable internal/keybox internal/media internal/triton", "golang.org/x/sys"},

	// All wiring: the server's roles, and the verbs.
	{"internal/daemon", "*", "*"},
	{"internal/cli", "*", "*"},
	{"packaging/agent", "", ""},
	{"cmd/imprint", "internal/cli internal/confine", ""},
	{"cmd/imprint-agent", "internal/guest", ""},
	{"cmd/imprint-helper", "internal/confine internal/inside", ""},
}

func TestImportTable(t *testing.T) {
	seen := map[string]bool{}
	for dir := range packageDirs(t) {
		name := filepath.ToSlash(dir)
		if name == "." {
			name = "imprint"
		}
		row := slices.IndexFunc(imports, func(r struct{ pkg, ours, third string }) bool { return r.pkg == name })
		if row < 0 {
			t.Errorf("package %s is not in the import table", name)
			continue
		}
		seen[name] = true
		checkImports(t, name, dir, strings.Fields(imports[row].ours), strings.Fields(imports[row].third))
	}
	for _, r := range imports {
		if !seen[r.pkg] {
			t.Errorf("the import table lists %s, which does not exist", r.pkg)
		}
	}
}

func checkImports(t *testing.T, name, dir string, ours, third []string) {
	used := map[string]bool{}
	for _, goos := range []string{"linux", "windows"} {
		ctx := build.Default
		ctx.GOOS, ctx.CgoEnabled = goos, false
		pkg, err := ctx.ImportDir(dir, 0)
		if err != nil {
			if _, none := err.(*build.NoGoError); none {
				continue
			}
			t.Fatal(err)
		}
		for _, imp := range pkg.Imports {
			allowed := third
			if imp == "imprint" || strings.HasPrefix(imp, "imprint/") {
				imp = strings.TrimPrefix(imp, "imprint/")
				allowed = ours
			} else if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
				continue // the standard library
			}
			i := slices.IndexFunc(allowed, func(a string) bool { return a == "*" || imp == a || strings.HasPrefix(imp, a+"/") })
			if i < 0 {
				t.Errorf("%s imports %s, which its row in the import table does not allow", name, imp)
				continue
			}
			used[allowed[i]] = true
		}
	}
	for _, a := range slices.Concat(ours, third) {
		if a != "*" && !used[a] {
			t.Errorf("%s may import %s but does not: take it out of the table", name, a)
		}
	}
}

// packageDirs yields every directory with Go files that are part of the product.
func packageDirs(t *testing.T) map[string]bool {
	dirs := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch base := d.Name(); {
			case path != "." && strings.HasPrefix(base, "."), base == "testdata", base == "bin", path == "test", path == "demo", path == "docs":
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			dirs[filepath.Dir(path)] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// The nouns are for everyone, the agent included: standard library, no I/O.
func TestNounsDoNoIO(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, imp := range pkg.Imports {
		switch imp {
		case "os", "net", "net/http", "syscall", "os/exec", "database/sql":
			t.Errorf("the root package imports %s", imp)
		}
	}
}

// Nothing happens on import.
func TestNoInitFunctions(t *testing.T) {
	for dir := range packageDirs(t) {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "\nfunc init()") {
				t.Errorf("%s has an init function", name)
			}
		}
	}
}
