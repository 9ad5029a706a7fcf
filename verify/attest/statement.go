package attest

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// A Statement is an in-toto Statement v1: a predicate about subjects.
//
// "subject: Set of software artifacts that the attestation applies to. Each
// element represents a single software artifact … matched purely by digest"
// (in-toto attestation framework v1, Statement).
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Resource      `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// A Predicate is one of our predicates.
type Predicate interface {
	// PredicateType is the URI of the predicate.
	PredicateType() string

	// Validate says what is missing or contradictory, or nil.
	Validate() error
}

// NewStatement returns the canonical bytes of a statement about one subject.
// It refuses a predicate that does not validate.
func NewStatement(subject digest.Digest, p Predicate) ([]byte, error) {
	if err := subject.Validate(); err != nil {
		return nil, fmt.Errorf("subject %q: %w", subject, err)
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.PredicateType(), err)
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", p.PredicateType(), err)
	}
	return Marshal(Statement{
		Type:          StatementTypeV1,
		Subject:       []Resource{{Digest: Digests(subject)}},
		PredicateType: p.PredicateType(),
		Predicate:     raw,
	})
}
