package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

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

// Bounds of statements: those of sigstore-go, so that nothing verifies here
// that others refuse.
const (
	MaxSubjects = 1024
	maxDigests  = 32
)

// ParseStatement reads exactly the bytes that were signed, strictly: one JSON
// object without duplicate or unknown fields, type Statement v1 (or v0.1, for
// predicates of others), subjects with well-formed digests.
func ParseStatement(payload []byte) (Statement, error) {
	// The in-toto types have more fields for a subject than ours write.
	var raw struct {
		Type          string            `json:"_type"`
		Subject       []json.RawMessage `json:"subject"`
		PredicateType string            `json:"predicateType"`
		Predicate     json.RawMessage   `json:"predicate"`
	}
	if err := Unmarshal(payload, &raw); err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	s := Statement{Type: raw.Type, PredicateType: raw.PredicateType, Predicate: raw.Predicate}
	switch {
	// `cosign attest` still writes v0.1, whose fields are the same. Statements of
	// ours have never been anything but v1.
	case s.Type != StatementTypeV1 && (s.Type != StatementTypeV01 || IsOurs(s.PredicateType)):
		return Statement{}, fmt.Errorf("statement: _type is %q, want %q", s.Type, StatementTypeV1)
	case s.PredicateType == "":
		return Statement{}, fmt.Errorf("statement: predicateType is missing")
	case len(raw.Subject) == 0:
		return Statement{}, fmt.Errorf("statement: it has no subject")
	case len(raw.Subject) > MaxSubjects:
		return Statement{}, fmt.Errorf("statement: %d subjects, at most %d are read", len(raw.Subject), MaxSubjects)
	}
	// "predicate object, optional: Additional parameters of the Predicate.
	// Unset is treated the same as set-but-empty" (in-toto attestation
	// framework v1, Statement).
	if p := bytes.TrimSpace(raw.Predicate); len(p) > 0 && p[0] != '{' {
		return Statement{}, fmt.Errorf("statement: predicate is not an object")
	}
	for i, r := range raw.Subject {
		var subject Resource
		if err := exactNames(r, reflect.TypeFor[Resource]()); err != nil {
			return Statement{}, fmt.Errorf("statement: subject %d: %w", i+1, err)
		}
		if err := json.Unmarshal(r, &subject); err != nil {
			return Statement{}, fmt.Errorf("statement: subject %d: %w", i+1, err)
		}
		if len(subject.Digest) > maxDigests {
			return Statement{}, fmt.Errorf("statement: subject %d has %d digests", i+1, len(subject.Digest))
		}
		if _, err := subject.Digest.OCI(); err != nil {
			return Statement{}, fmt.Errorf("statement: subject %d: %w", i+1, err)
		}
		s.Subject = append(s.Subject, subject)
	}
	return s, nil
}

// Names reports whether d is a subject of the statement.
func (s Statement) Names(d digest.Digest) bool {
	for _, r := range s.Subject {
		if hex, ok := r.Digest[d.Algorithm().String()]; ok && hex == d.Encoded() {
			return true
		}
	}
	return false
}

// CheckTestResult says why a statement of in-toto's test-result does not say
// that a test passed, or nil.
//
// "result string, required: Indicates the result of the test run … one of
// PASSED, WARNED, or FAILED" (in-toto attestation, test-result v0.1).
func CheckTestResult(s Statement) error {
	var p struct {
		Result string `json:"result"`
	}
	if err := exactNames(s.Predicate, reflect.TypeOf(p)); err != nil {
		return fmt.Errorf("test result: %w", err)
	}
	if err := json.Unmarshal(s.Predicate, &p); err != nil {
		return fmt.Errorf("test result: %w", err)
	}
	if p.Result != "PASSED" {
		return fmt.Errorf("the test result is %q and not PASSED", p.Result)
	}
	return nil
}

// IsOurs reports whether a predicate type is one of Assay's own.
func IsOurs(predicateType string) bool { return strings.HasPrefix(predicateType, predicateBase) }

// ParsePredicate reads the predicate of a statement of ours, strictly, and
// validates it. An unknown field is an error: a reader that skipped it could
// take for a yes what its writer had limited.
func ParsePredicate(s Statement) (Predicate, error) {
	switch s.PredicateType {
	// What a machine measured must be there in full: "observed" left out of a
	// certificate must not be read as 0 flips observed.
	case PredicateCertificate:
		return parse[Certificate](s, complete)
	case PredicateRefusal:
		return parse[Refusal](s, complete)
	case PredicateLineage:
		return parse[Lineage](s, optional)
	case PredicateDeployment:
		return parse[Deployment](s, optional)
	case PredicateApproval:
		return parse[Approval](s, optional)
	case PredicateWithdrawal:
		return parse[Withdrawal](s, optional)
	}
	return nil, fmt.Errorf("predicate type %q is unknown", s.PredicateType)
}

func parse[P Predicate](s Statement, must presence) (Predicate, error) {
	var p P
	if err := unmarshal(s.Predicate, &p, must); err != nil {
		return nil, fmt.Errorf("%s: %w", s.PredicateType, err)
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.PredicateType, err)
	}
	return p, nil
}
