package repair

// Of what is tested from outside.
var (
	Probe      = probe
	ParseFstab = parseFstab
	OpenTree   = openTree
)

// Tree is a directory of a test's.
type Tree = tree

func (t *tree) Fallback(dryRun bool) ([]string, error)          { return t.fallback(dryRun) }
func (t *tree) Refer(r map[string]string) ([]string, error)     { return t.refer(r) }
func (t *tree) Forget() ([]string, error)                       { return t.forget() }
func (t *tree) Initramfs(drivers ...string) (*initramfs, error) { return t.initramfs(drivers) }

// Fstab is an entry as [mount] has it.
func (m *mount) Fstab() (spec, dir string) { return m.spec, m.dir }

// Find is which volume an entry means, by the index.
func (m *mount) Find(volumes []Volume) int {
	v := m.find(volumes)
	for i := range volumes {
		if &volumes[i] == v {
			return i
		}
	}
	return -1
}
