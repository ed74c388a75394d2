package guest

// Config is the directory of the machine's lasting identity.
func (l Layout) Config() string { return l.at("etc", "imprint") }

// Run is the directory for what a reboot may forget.
func (l Layout) Run() string { return l.at("run", "imprint") }
