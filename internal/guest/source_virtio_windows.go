package guest

import "context"

// virtioSource is the named virtio-serial port of the vioser driver.
type virtioSource struct{}

func newVirtioSource(Layout) virtioSource { return virtioSource{} }

func (s virtioSource) String() string { return "virtio port " + PortName }

func (s virtioSource) Try(ctx context.Context) (*finding, error) {
	d, err := openDevice(`\\.\Global\` + PortName)
	if err != nil {
		return nil, err
	}
	return greet(ctx, s.String(), d)
}
