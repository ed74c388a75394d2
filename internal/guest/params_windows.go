package guest

// keepsValues says whether values are kept for programs to read. Windows has no
// file system in memory, so that they are asked for each time with
// imprint-agent param --live.
const keepsValues = false

func (l Layout) makeParamsDir() error { return nil }
