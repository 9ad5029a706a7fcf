package attest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// StatusListType is the payload type of a signed status list: a DSSE envelope
// outside in-toto and Sigstore's media types, so that a list never passes for
// a statement about what it lists.
const StatusListType = "application/vnd.assay.status-list.v1+json"

// MaxStatusEntries bounds a status list.
const MaxStatusEntries = 20_000

// A StatusList is what a registry knows to be withdrawn or suspended, at one moment and
// for a short time: whoever asks without the registry believes no
// certificate that is in it, and none at all once the list is out of date.
type StatusList struct {
	Version int `json:"version"` // 1

	// Issuer is the origin of the registry's log, and LogSize how many leaves
	// the list takes into account.
	Issuer  string `json:"issuer"`
	LogSize int64  `json:"logSize"`

	Validity Validity `json:"validity"`

	// Withdrawn is sorted by digest.
	Withdrawn []StatusEntry `json:"withdrawn"`
}

// A StatusEntry is something that was withdrawn or suspended: a certificate by
// the digest of the manifest that carries it, or a model version.
type StatusEntry struct {
	Digest string    `json:"digest"` // sha256:…
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"` // of a suspension, as far as it is known
}

// Validate says what is missing or contradictory, or nil.
func (l StatusList) Validate() error {
	switch {
	case l.Version != 1:
		return fmt.Errorf("version %d of a status list is unknown", l.Version)
	case l.Issuer == "":
		return errors.New("issuer is missing")
	case l.Validity.NotBefore.IsZero() || !l.Validity.NotBefore.Before(l.Validity.NotAfter):
		return errors.New("validity is missing, or ends before it begins")
	case len(l.Withdrawn) > MaxStatusEntries:
		return fmt.Errorf("it has %d entries, at most %d are read", len(l.Withdrawn), MaxStatusEntries)
	}
	last := ""
	for _, e := range l.Withdrawn {
		if err := digest.Digest(e.Digest).Validate(); err != nil {
			return fmt.Errorf("entry %q: %w", e.Digest, err)
		}
		if e.Digest <= last {
			return fmt.Errorf("entry %s is not in order", e.Digest)
		}
		last = e.Digest
	}
	return nil
}

// Find returns the entry of a digest.
func (l StatusList) Find(d digest.Digest) (StatusEntry, bool) {
	i, ok := slices.BinarySearchFunc(l.Withdrawn, string(d), func(e StatusEntry, d string) int {
		switch {
		case e.Digest < d:
			return -1
		case e.Digest > d:
			return 1
		}
		return 0
	})
	if !ok {
		return StatusEntry{}, false
	}
	return l.Withdrawn[i], true
}

// ParseStatusList reads a status list strictly: every field has to be there.
func ParseStatusList(raw []byte) (StatusList, error) {
	var l StatusList
	if err := unmarshal(raw, &l, complete); err != nil {
		return StatusList{}, fmt.Errorf("status list: %w", err)
	}
	if err := l.Validate(); err != nil {
		return StatusList{}, fmt.Errorf("status list: %w", err)
	}
	return l, nil
}
