package enrol

// ParseSSHHost is exported for its fuzz test.
var ParseSSHHost = parseSSHHost
