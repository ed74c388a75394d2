package store

// children are what this test binary can be started as.
var children = map[string]func(){
	childEtcd:       runEtcd,
	childWriter:     runWriter,
	childDiskFull:   runDiskFull,
	childDiskDies:   runDiskDies,
	childDiskWriter: runDiskWriter,
}
