package daemon

import (
	"net"

	"imprint/internal/server"
)

// listeners are all sockets on which the roles answer.
type listeners struct {
	control server.Listeners
	checkIn net.Listener
	neutron net.Listener
}

func (d *Daemon) listen() (l listeners, err error) {
	defer func() {
		if err != nil {
			for _, open := range []net.Listener{l.control.Unix, l.control.TLS, l.control.Operator, l.checkIn, l.neutron} {
				if open != nil {
					open.Close()
				}
			}
		}
	}()
	s := d.settings
	if l.control.Unix, err = d.server.ListenUnix(s.Socket); err != nil {
		return l, err
	}
	if s.Operator != "" {
		if l.control.Operator, err = server.ListenTCP(s.Operator); err != nil {
			return l, err
		}
	}
	if s.API.Listen != "" {
		if l.control.TLSConf, err = apiTLS(s.API); err != nil {
			return l, err
		}
		if l.control.TLS, err = server.ListenTCP(s.API.Listen); err != nil {
			return l, err
		}
	}
	if d.checkIn != nil {
		if l.checkIn, err = server.ListenTCP(s.CheckIn.Listen); err != nil {
			return l, err
		}
	}
	l.neutron, err = d.neutron.listen()
	return l, err
}
