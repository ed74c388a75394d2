package qemu

import (
	"imprint"
)

// Stock is a platform that unmodified guest software knows by its SMBIOS, and on
// which it reads its metadata from a known place.
type Stock string

// The platforms.
const (
	OpenStack Stock = "openstack" // http://169.254.169.254/openstack/, or a config drive
	EC2       Stock = "ec2"       // http://169.254.169.254/latest/, with session tokens (IMDSv2)
	NoCloud   Stock = "nocloud"   // http://169.254.169.254/nocloud/
	SmartOS   Stock = "smartos"   // the second serial port
)

// Stocks returns the platforms.
func Stocks() []Stock { return []Stock{OpenStack, EC2, NoCloud, SmartOS} }

// noCloudSeed is what cloud-init's NoCloud reads in the serial number. Its "-net"
// is for versions before 23.2, which otherwise look for files only.
const noCloudSeed = "ds=nocloud-net;s=http://169.254.169.254/nocloud/"

// LookLike makes the machine one of platform, as cloud-init's ds-identify and its
// data sources tell them. It fails with kind [imprint.Invalid] if platform is unknown.
func (m *Machine) LookLike(platform Stock) error {
	switch platform {
	case OpenStack:
		m.Product = "OpenStack Nova"
	case EC2: // Amazon's have a UUID that begins in this way, and once more as the serial number
		id := string(m.Instance)
		if id == "" {
			id = string(imprint.NewInstanceID())
		}
		m.UUID = "ec2" + id[3:]
		m.Serial = m.UUID
	case NoCloud:
		m.Serial = noCloudSeed
	case SmartOS:
		m.Product = "SmartDC HVM"
	default:
		return imprint.Errorf(imprint.Invalid, "describe", "platform", "%q is none of openstack, ec2, nocloud, smartos", platform)
	}
	return nil
}
