package dialect

import (
	"encoding/json"
	"time"

	"imprint"
)

// The keys of imprint's own over a key-value carrier. Those in the first group
// are rendered by [Native] and [Params]; the host role answers the rest.
const (
	KeyPayload = "imprint:payload" // the bootstrap document
	KeyCA      = "imprint:ca"      // PEM of the one CA to trust
	KeyParams  = "imprint:params"  // what parameters there are
	KeyParam   = "imprint:param/"  // followed by a name: the value in the clear

	KeyTime           = "imprint:time"            // now, RFC 3339
	KeyState          = "imprint:state"           // where the enrolment is
	KeyRequest        = "imprint:request"         // put: a certificate request
	KeyCertificate    = "imprint:certificate"     // PEM of the leaf and its issuers
	KeySSHCertificate = "imprint:ssh-certificate" // of the SSH host key
	KeyConfirmation   = "imprint:confirmation"    // put: proof of key and receipt
	KeySealed         = "imprint:sealed/"         // followed by a name: sealed to the enrolled key
	KeyUserData       = "imprint:user-data"       // sealed to the enrolled key
	KeyReady          = "imprint:ready"           // put: private values may leave the channel
	KeyPipe           = "imprint:pipe"            // messages, both ways
	KeyPassword       = "imprint:password"        // put: encrypted to the operator
)

// Payload returns the instance's bootstrap document for a two-way channel,
// which needs no token.
func Payload(inst *imprint.Instance, facts Facts, at time.Time) *imprint.Payload {
	return &imprint.Payload{
		Version:    imprint.PayloadVersion,
		Time:       at.UTC().Truncate(time.Second),
		Instance:   inst.ID,
		Generation: inst.Generation,
		Tenant:     inst.Spec.Tenant,
		Name:       inst.Spec.Name,
		DNSNames:   inst.Spec.DNSNames,
		IPs:        inst.Spec.IPs,
		Network:    inst.Spec.Network,
		CA:         facts.CA,
		CheckIn:    facts.CheckIn,
	}
}

// Native renders what of imprint's own keys depends on the instance and its
// tenant alone: the payload (encoded), the CA, and the public parameters.
// readers are the channel's.
func Native(inst *imprint.Instance, facts Facts, payload []byte, readers imprint.Readers) *imprint.View {
	v := values{readers, map[string]imprint.Value{}}
	v.put(KeyPayload, imprint.Public, string(payload))
	v.put(KeyCA, imprint.Public, facts.CA)
	for _, p := range inst.Spec.Params {
		if p.Visibility == imprint.Public { // the others' values are not in the spec
			v.put(KeyParam+p.Name, p.Visibility, p.Value)
		}
	}
	return v.view(inst)
}

// paramInfo is an entry of [KeyParams].
type paramInfo struct {
	Name       string             `json:"name"`
	Visibility imprint.Visibility `json:"visibility"`
	Available  bool               `json:"available"`
}

// Params renders the list of parameters. available says whether the value of
// one that is not public is there to be read: a secret may have to be given again.
func Params(inst *imprint.Instance, available func(imprint.Param) bool) ([]byte, error) {
	list := make([]paramInfo, 0, len(inst.Spec.Params))
	for _, p := range inst.Spec.Params {
		list = append(list, paramInfo{p.Name, p.Visibility, p.Visibility == imprint.Public || available(p)})
	}
	return json.Marshal(list)
}

// State is the value of [KeyState].
type State struct {
	State      imprint.State      `json:"state"`
	Reason     string             `json:"reason,omitempty"`
	Waiting    bool               `json:"waiting"` // for an operator's approval
	Generation imprint.Generation `json:"generation"`
}

// StateOf returns where inst's enrolment is.
func StateOf(inst *imprint.Instance) State {
	claim := inst.Enrolment.Claim
	return State{
		State:      inst.Enrolment.State,
		Reason:     inst.Enrolment.Reason,
		Waiting:    claim != nil && claim.NeedsApproval && claim.ApprovedBy == "",
		Generation: inst.Generation,
	}
}
