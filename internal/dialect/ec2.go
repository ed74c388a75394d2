package dialect

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// EC2Versions returns the dated versions of the EC2 metadata that Nova serves,
// oldest first, and [Latest].
func EC2Versions() []string {
	return []string{"1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01", "2009-04-04", Latest}
}

// EC2 renders the tree of EC2's instance metadata as Nova serves it, in every
// version: "VERSION/meta-data/…" and "VERSION/user-data". A directory is only a
// prefix of names; how directories are listed is the carrier's business.
//
// An instance with an interface on its host's link-local network has two things
// more than in Nova: "network/interfaces/macs/…" and, beside meta-data,
// "dynamic/instance-identity/document". cloud-init asks for both on what looks like
// a machine of Amazon's, waits for the document in every stage of a boot, and in
// version 22.4 fails where it was not told about the interface that it uses. An
// interface without a VPC it takes for "EC2 Classic": then it asks for a lease
// once more when the network is up, and fails because the route is there already
// (docs/decisions/0016-ec2-has-a-vpc.md).
//
// What EC2 counts and imprint does not, such as images and reservations, gets
// numbers made from identifiers, which stay the same for the instance's life.
func EC2(inst *imprint.Instance, facts Facts) *imprint.View {
	spec := &inst.Spec
	v := values{NetworkReaders, map[string]imprint.Value{}}
	user := userData(spec)
	leaves := ec2Leaves(inst, facts)
	identity := public(ec2Identity(inst, facts))
	for _, version := range EC2Versions() {
		for _, leaf := range leaves {
			if version >= leaf.since {
				v.putValue(version+"/meta-data/"+leaf.name, leaf.value)
			}
		}
		if spec.UserData != "" {
			v.putValue(version+"/user-data", user)
		}
		if inst.NIC != nil && version >= ec2Interfaces {
			v.putValue(version+"/dynamic/instance-identity/document", identity)
		}
	}
	return v.view(inst)
}

// ec2Leaf is a value and the version that has it first.
type ec2Leaf struct {
	since, name string
	value       imprint.Value
}

// imageOf is what the image is known by; its URL stays inside.
func imageOf(spec *imprint.Spec) string {
	if spec.Image == nil {
		return ""
	}
	return spec.Image.Source
}

func ec2Leaves(inst *imprint.Instance, facts Facts) []ec2Leaf {
	spec := &inst.Spec
	name := fqdn(spec)
	short, _, _ := strings.Cut(string(inst.ID), "-") // 32 bits in hexadecimal
	leaves := []ec2Leaf{
		{"1.0", "ami-id", public("ami-" + string(imprint.DigestOf([]byte(imageOf(spec)))[:8]))},
		{"1.0", "ami-launch-index", public("0")},
		{"1.0", "ami-manifest-path", public("FIXME")}, // so in Nova
		{"1.0", "instance-id", public("i-" + short)},
		{"1.0", "hostname", public(name)},
		{"1.0", "local-ipv4", public(firstIPv4(spec))},
		{"1.0", "reservation-id", public("r-" + short)},
		{"1.0", "security-groups", public("default")},
		{"2007-01-19", "local-hostname", public(name)},
		{"2007-01-19", "public-hostname", public(name)},
		{"2007-01-19", "public-ipv4", public("")},
		{"2007-08-29", "instance-type", public("imprint")},
		// No ephemeral0 and no swap: cloud-init would format and mount them.
		{"2007-12-15", "block-device-mapping/ami", public("vda")},
		{"2007-12-15", "block-device-mapping/root", public("/dev/vda")},
		{"2008-02-01", "placement/availability-zone", public(zone(spec, facts))},
		{"2008-09-01", "instance-action", public("none")},
	}
	for i, key := range spec.SSHKeys {
		leaves = append(leaves, ec2Leaf{"1.0", fmt.Sprintf("public-keys/%d/openssh-key", i), public(key)})
	}
	for i, mac := range ec2MACs(inst) {
		dir := "network/interfaces/macs/" + mac + "/"
		leaves = append(leaves,
			ec2Leaf{ec2Interfaces, dir + "device-number", public(strconv.Itoa(i))},
			ec2Leaf{ec2Interfaces, dir + "mac", public(mac)},
			ec2Leaf{ec2Interfaces, dir + "vpc-id", public("vpc-" + short)})
		if i == 0 {
			leaves = append(leaves, ec2Leaf{ec2Interfaces, dir + "local-ipv4s", public(inst.NIC.IPv4.String())})
		}
	}
	return leaves
}

// ec2Interfaces is the version from which on interfaces are described: the oldest
// that cloud-init uses.
const ec2Interfaces = "2009-04-04"

// ec2MACs are the interfaces that EC2's metadata can describe, which are those
// that get their addresses by DHCP; the one to the host is the first, and without
// it there are none.
func ec2MACs(inst *imprint.Instance) (macs []string) {
	if inst.NIC == nil {
		return nil
	}
	macs = []string{inst.NIC.MAC}
	if n := inst.Spec.Network; n != nil {
		for _, name := range slices.Sorted(maps.Keys(n.Ethernets)) {
			if mac := strings.ToLower(n.Ethernets[name].MAC); mac != "" && n.Ethernets[name].DHCP4 && !slices.Contains(macs, mac) {
				macs = append(macs, mac)
			}
		}
	}
	return macs
}

// ec2Identity is the instance identity document, unsigned: nothing proves it but
// the interface that it is read over.
func ec2Identity(inst *imprint.Instance, facts Facts) string {
	leaf := map[string]string{}
	for _, l := range ec2Leaves(inst, facts) {
		leaf[l.name] = string(l.value.Data)
	}
	return compact(struct {
		Version      string `json:"version"`
		InstanceID   string `json:"instanceId"`
		ImageID      string `json:"imageId"`
		InstanceType string `json:"instanceType"`
		Zone         string `json:"availabilityZone"`
		Region       string `json:"region"`
		PrivateIP    string `json:"privateIp"`
	}{"2017-09-30", leaf["instance-id"], leaf["ami-id"], leaf["instance-type"], leaf["placement/availability-zone"], leaf["placement/availability-zone"], leaf["local-ipv4"]})
}

// EC2KeyEntry is how the listing of "public-keys" names key i: without the slash
// of a directory, and with the key's name.
func EC2KeyEntry(i string) string { return i + "=" + keyPrefix + i }

// EC2Password is the answer of EC2's GetPasswordData, in the JSON of aws-cli.
type EC2Password struct {
	InstanceID   string `json:"InstanceId"`
	Timestamp    string // RFC 3339
	PasswordData string // what the guest posted: base64 of RSA PKCS #1 v1.5
}

// NewEC2Password returns it for the instance called id, which posted a password and
// changed last at updated.
func NewEC2Password(id imprint.InstanceID, updated time.Time, posted []byte) EC2Password {
	short, _, _ := strings.Cut(string(id), "-")
	return EC2Password{"i-" + short, updated.UTC().Format(time.RFC3339), strings.Join(strings.Fields(string(posted)), "")}
}
