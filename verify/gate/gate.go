// Package gate decides whether a model version may be deployed to an
// environment. [Decide] is pure: the same policy, evidence and question give
// the same decision, to the byte, on a server, in a pipeline, and years later.
package gate

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"go.yaml.in/yaml/v3"

	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// Reason codes of decisions, besides those of package verify.
const (
	// Of an allow: what it rests on.
	CodeReleased  = "signature.verified"
	CodeTraced    = "lineage.verified"
	CodeCertified = "certificate.valid"

	// Of a deny.
	CodeIncomplete         = "evidence.incomplete"
	CodeNoTrust            = "trust.empty"
	CodeNoRelease          = "signature.missing"
	CodeNoLineage          = "lineage.missing"
	CodeNoDataset          = "lineage.no-dataset"
	CodeNoEnvironment      = "environment.unknown"
	CodeNoCertificate      = "certificate.missing"
	CodeExpired            = "certificate.expired"
	CodeNotYetValid        = "certificate.not-yet-valid"
	CodeWithdrawn          = "certificate.withdrawn"
	CodeEnvironmentChanged = "certificate.environment-changed"
	CodeRecalled           = "model.recalled"
	CodeAncestorRecalled   = "model.ancestor-recalled"
)

// A Policy says what a deployment needs. Criteria judge a replay, trust says
// who may say what, and policy decides here.
type Policy struct {
	Version int `json:"version" yaml:"version"`

	// RequireRelease: a release signature.
	RequireRelease bool `json:"requireRelease" yaml:"requireRelease"`

	// RequireLineage: verified lineage, which names a dataset by digest.
	RequireLineage bool `json:"requireLineage" yaml:"requireLineage"`

	// RequireCertificate: a certificate for the environment as it is now.
	RequireCertificate bool `json:"requireCertificate" yaml:"requireCertificate"`
}

// DefaultPolicy requires everything there is.
func DefaultPolicy() Policy {
	return Policy{Version: 1, RequireRelease: true, RequireLineage: true, RequireCertificate: true}
}

// ParsePolicy reads a policy file (YAML, version 1), strictly. Every
// requirement has to be written down: one that was left out is an error, and
// not an exemption.
func ParsePolicy(raw []byte) (Policy, error) {
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	var f struct {
		Version            int   `yaml:"version"`
		RequireRelease     *bool `yaml:"requireRelease"`
		RequireLineage     *bool `yaml:"requireLineage"`
		RequireCertificate *bool `yaml:"requireCertificate"`
	}
	if err := dec.Decode(&f); err != nil {
		return Policy{}, fmt.Errorf("policy file: %w", err)
	}
	var more any
	switch {
	case dec.Decode(&more) != io.EOF:
		return Policy{}, fmt.Errorf("policy file: something follows the first document")
	case f.Version != 1:
		return Policy{}, fmt.Errorf("policy file: version %d is unknown; write version: 1", f.Version)
	case f.RequireRelease == nil || f.RequireLineage == nil || f.RequireCertificate == nil:
		return Policy{}, fmt.Errorf("policy file: write requireRelease, requireLineage and requireCertificate, each true or false")
	}
	return Policy{1, *f.RequireRelease, *f.RequireLineage, *f.RequireCertificate}, nil
}

// Digest identifies the policy.
func (p Policy) Digest() digest.Digest {
	raw, err := attest.Marshal(p)
	if err != nil {
		panic(err) // plain data
	}
	return digest.FromBytes(raw)
}

// A Question is what is asked of the gate.
type Question struct {
	Model       digest.Digest
	Repository  string
	Environment string // its name

	// EnvironmentDocument is the environment as it is now: the digest of its
	// current document; "" if it has none.
	EnvironmentDocument digest.Digest

	Now time.Time
}

// A Decision answers a question.
type Decision struct {
	Allow               bool          `json:"allow"`
	Model               digest.Digest `json:"model"`
	Repository          string        `json:"repository"`
	Environment         string        `json:"environment"`
	EnvironmentDocument digest.Digest `json:"environmentDocument,omitempty"`

	// Reasons of an allow are what it rests on; of a deny, all that stands
	// in its way.
	Reasons []Reason `json:"reasons"`

	Policy digest.Digest `json:"policy"`
	Trust  digest.Digest `json:"trust"`
	At     time.Time     `json:"at"`
}

// A Reason is one of them.
type Reason struct {
	Code     string          `json:"code"`
	Message  string          `json:"message"`
	Remedy   string          `json:"remedy,omitempty"`
	Evidence []digest.Digest `json:"evidence,omitempty"` // manifests that carry the statements
}

// Bytes is the decision in canonical form.
func (d Decision) Bytes() ([]byte, error) { return attest.Marshal(d) }

// NoEvidence reports whether nothing that verified was found at all.
func (d Decision) NoEvidence(ev *verify.Evidence) bool {
	return !d.Allow && !slices.ContainsFunc(ev.Facts, func(f verify.Fact) bool { _, ok := f.Verified(); return ok })
}

// Decide answers a question. It allows only if everything that the policy
// requires is there and nothing stands against it.
func Decide(p Policy, ev *verify.Evidence, q Question) Decision {
	c := &court{p: p, ev: ev, q: q}
	c.whole()
	c.recalls()
	if p.RequireRelease {
		c.release()
	}
	if p.RequireLineage {
		c.lineage()
	}
	if p.RequireCertificate {
		c.certificate()
	}
	d := Decision{
		Allow: len(c.against) == 0, Model: q.Model, Repository: q.Repository,
		Environment: q.Environment, EnvironmentDocument: q.EnvironmentDocument,
		Reasons: c.against, Policy: p.Digest(), Trust: ev.Trust, At: q.Now.UTC(),
	}
	if d.Allow {
		d.Reasons = c.rests
	}
	if d.Reasons == nil {
		d.Reasons = []Reason{}
	}
	return d
}

type court struct {
	p       Policy
	ev      *verify.Evidence
	q       Question
	against []Reason
	rests   []Reason
}

func (c *court) deny(code, remedy, message string, evidence ...digest.Digest) {
	c.against = append(c.against, Reason{code, message, remedy, evidence})
}

func (c *court) rest(code, message string, evidence ...digest.Digest) {
	c.rests = append(c.rests, Reason{Code: code, Message: message, Evidence: evidence})
}

// reference is the model as a command line names it.
func (c *court) reference() string { return c.q.Repository + "@" + string(c.q.Model) }

// whole: evidence must be about the model asked for, complete, and seen in
// the light of some trust.
func (c *court) whole() {
	if c.ev.Subject != c.q.Model || c.ev.Repository != c.q.Repository {
		c.deny(CodeIncomplete, "gather the evidence of the model that is asked for",
			fmt.Sprintf("the evidence is about %s@%s", c.ev.Repository, c.ev.Subject))
	}
	if c.ev.Incomplete != "" {
		c.deny(CodeIncomplete, "remove what should not be attached to the model", "not all evidence could be read: "+c.ev.Incomplete)
	}
	if c.ev.Trust == verify.NoTrust().Digest() {
		c.deny(CodeNoTrust, "write a trust file and apply it: assay trust apply trust.yaml", "nobody is trusted, so no statement counts")
	}
}

// verified yields the verified facts about a subject with a predicate type.
func (c *court) verified(about digest.Digest, predicateType string) (list []verify.Fact) {
	for _, f := range c.ev.Facts {
		if _, ok := f.Verified(); ok && f.About == about && f.PredicateType == predicateType {
			list = append(list, f)
		}
	}
	return list
}

// failed turns the statements about the model that claim a predicate type and
// did not verify into reasons: what was tried matters to whoever has to mend it.
func (c *court) failed(predicateType string) (found bool) {
	for _, f := range c.ev.Facts {
		if _, ok := f.Verified(); ok || f.About != c.q.Model || f.PredicateType != predicateType {
			continue
		}
		found = true
		c.deny(f.Outcome, f.Remedy, f.Message, f.Referrer)
	}
	return found
}

func (c *court) recalls() {
	for _, f := range c.ev.Facts {
		w, ok := verify.Predicate[attest.Withdrawal](f)
		if !ok {
			continue
		}
		switch {
		case f.About == c.q.Model:
			c.deny(CodeRecalled, "deploy another version", "the model was withdrawn: "+w.Reason, f.Referrer)
		case c.isAncestor(f.About):
			c.deny(CodeAncestorRecalled, "train again without it, or deploy another version",
				fmt.Sprintf("it descends from %s, which was withdrawn: %s", f.About, w.Reason), f.Referrer)
		}
	}
}

func (c *court) isAncestor(d digest.Digest) bool {
	for _, f := range c.ev.Facts {
		if l, ok := verify.Predicate[attest.Lineage](f); ok {
			for _, p := range l.Parents {
				if got, err := p.Digest.OCI(); err == nil && got == d {
					return true
				}
			}
		}
	}
	return false
}

func (c *court) release() {
	if facts := c.verified(c.q.Model, attest.PredicateSignature); len(facts) > 0 {
		c.rest(CodeReleased, "released by "+facts[0].Identity, facts[0].Referrer)
		return
	}
	c.failed(attest.PredicateSignature)
	c.deny(CodeNoRelease, "assay sign --key release.key "+c.reference(), "no release signature verifies")
}

func (c *court) lineage() {
	facts := c.verified(c.q.Model, attest.PredicateLineage)
	for _, f := range facts {
		l, ok := verify.Predicate[attest.Lineage](f)
		if !ok {
			continue
		}
		for _, d := range l.Datasets {
			if d.Relation == attest.TrainedOn {
				c.rest(CodeTraced, fmt.Sprintf("lineage stated by %s: %d parents, %d datasets, %d code revisions", f.Identity, len(l.Parents), len(l.Datasets), len(l.Code)), f.Referrer)
				return
			}
		}
	}
	remedy := "assay lineage record --key provenance.key --dataset NAME=FILE " + c.reference()
	if len(facts) > 0 {
		c.deny(CodeNoDataset, remedy, "its lineage names no dataset it was trained on", facts[0].Referrer)
		return
	}
	c.failed(attest.PredicateLineage)
	c.deny(CodeNoLineage, remedy, "no statement of lineage verifies")
}

// certificate looks for one that is good now, for the environment as it is
// now. If there is none, each that is not good is a reason.
func (c *court) certificate() {
	if c.q.EnvironmentDocument == "" {
		c.deny(CodeNoEnvironment, "assay env register "+c.q.Environment, fmt.Sprintf("environment %q is not registered", c.q.Environment))
		return
	}
	again := fmt.Sprintf("replay and certify again: assay replay --env %s --suite SUITE %s", c.q.Environment, c.reference())
	var reasons []Reason
	for _, f := range c.verified(c.q.Model, attest.PredicateCertificate) {
		cert, ok := verify.Predicate[attest.Certificate](f)
		if !ok || cert.EnvironmentName != c.q.Environment {
			continue
		}
		measured, err := cert.Environment.Digest.OCI()
		withdrawn := c.verified(f.Referrer, attest.PredicateWithdrawal)
		at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
		switch {
		case len(withdrawn) > 0:
			reasons = append(reasons, Reason{CodeWithdrawn, "the certificate was withdrawn", again, []digest.Digest{f.Referrer, withdrawn[0].Referrer}})
		case err != nil || measured != c.q.EnvironmentDocument:
			reasons = append(reasons, Reason{CodeEnvironmentChanged, "the environment has changed since it was certified; see 'assay env diff'", again, []digest.Digest{f.Referrer}})
		case c.q.Now.Before(cert.Validity.NotBefore):
			reasons = append(reasons, Reason{CodeNotYetValid, "the certificate is valid from " + at(cert.Validity.NotBefore) + " on", "wait", []digest.Digest{f.Referrer}})
		case !c.q.Now.Before(cert.Validity.NotAfter):
			reasons = append(reasons, Reason{CodeExpired, "the certificate expired at " + at(cert.Validity.NotAfter), again, []digest.Digest{f.Referrer}})
		case !cert.Validity.Contains(c.q.Now) || cert.Verdict != attest.Certified:
			reasons = append(reasons, Reason{CodeNoCertificate, "the certificate does not certify", again, []digest.Digest{f.Referrer}})
		default:
			c.rest(CodeCertified, fmt.Sprintf("certified by %s until %s: %s", f.Identity, at(cert.Validity.NotAfter), cert.Claim), f.Referrer)
			return
		}
	}
	if len(reasons) > 0 {
		c.against = append(c.against, reasons...)
		return
	}
	c.failed(attest.PredicateCertificate)
	c.deny(CodeNoCertificate, again, "no certificate for "+c.q.Environment)
}
