package verify

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/assay-dev/assay/verify/attest"
)

// A Status is a status list whose signature was checked, or one of whoever
// asks.
type Status struct {
	List     attest.StatusList `json:"-"`
	Digest   digest.Digest     `json:"digest,omitempty"` // of the signed bytes
	Identity string            `json:"identity,omitempty"`
	Issued   time.Time         `json:"issued"`
	Expires  time.Time         `json:"expires"`
}

// OwnStatus is the list of a registry that asks itself.
func OwnStatus(l attest.StatusList) *Status {
	return &Status{List: l, Issued: l.Validity.NotBefore, Expires: l.Validity.NotAfter}
}

// SignStatusList signs a status list with a registry's own key.
func SignStatusList(key *Key, l attest.StatusList) ([]byte, error) {
	if err := l.Validate(); err != nil {
		return nil, fmt.Errorf("status list: %w", err)
	}
	payload, err := attest.Marshal(l)
	if err != nil {
		return nil, err
	}
	return signEnvelope(key, attest.StatusListType, payload)
}

// signEnvelope signs a payload into a DSSE envelope.
func signEnvelope(key *Key, payloadType string, payload []byte) ([]byte, error) {
	_, sig, err := key.sign(dsse.PAE(payloadType, payload))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return json.Marshal(dsse.Envelope{
		PayloadType: payloadType,
		Payload:     base64.StdEncoding.EncodeToString(payload),
		Signatures:  []dsse.Signature{{KeyID: key.Hint(), Sig: base64.StdEncoding.EncodeToString(sig)}},
	})
}

// ParseStatus verifies a signed status list: its signer needs the role
// withdrawal. One that is out of date, or not yet valid, is an error: what was
// withdrawn since is not in it. The error is always a *[Failure]; with one
// whose code is [CodeStatusStale] comes the list, for a gate to refuse.
func ParseStatus(raw []byte, trust *Trust, c Context) (*Status, error) {
	const again = "fetch a newer one: assay trust status --out FILE"
	if len(raw) > MaxBundle {
		return nil, fail(CodeTooLarge, "", "the status list has %d bytes, at most %d are read", len(raw), MaxBundle)
	}
	if err := attest.CheckJSON(raw); err != nil {
		return nil, fail(CodeStatusInvalid, again, "the status list is no DSSE envelope: %v", err)
	}
	var env dsse.Envelope
	if err := json.Unmarshal(raw, &env); err != nil {
		return nil, fail(CodeStatusInvalid, again, "the status list is no DSSE envelope: %v", err)
	}
	if env.PayloadType != attest.StatusListType {
		return nil, fail(CodeStatusInvalid, again, "the status list's payload is of type %q", env.PayloadType)
	}
	payload, err := env.DecodeB64Payload()
	if err != nil {
		return nil, fail(CodeStatusInvalid, again, "the status list's payload is not base64: %v", err)
	}
	k := trust.keyOf(&env, payload)
	if k == nil {
		return nil, fail(CodeUnknownKey, "give the registry's status key the role withdrawal in the trust file: assay trust status --public-key",
			"no key of the trust file verifies the status list")
	}
	l, err := attest.ParseStatusList(payload)
	if err != nil {
		return nil, fail(CodeStatusInvalid, again, "%v", err)
	}
	id, err := whoMay(k.identities, Withdrawal, c, Time{At: l.Validity.NotBefore, By: NoTime})
	if err != nil {
		return nil, err
	}
	s := &Status{List: l, Digest: digest.FromBytes(raw), Identity: id.ID, Issued: l.Validity.NotBefore, Expires: l.Validity.NotAfter}
	return s, s.Current(c.Now)
}

// Current returns why the list says nothing about a moment, or nil.
func (s *Status) Current(now time.Time) error {
	const again = "fetch a newer one: assay trust status --out FILE"
	switch {
	case !now.Before(s.Expires):
		return fail(CodeStatusStale, again, "the status list was valid until %s", s.Expires.UTC().Format(time.RFC3339))
	case now.Add(skew).Before(s.Issued):
		return fail(CodeStatusStale, "check the clock", "the status list is valid from %s on", s.Issued.UTC().Format(time.RFC3339))
	}
	return nil
}
