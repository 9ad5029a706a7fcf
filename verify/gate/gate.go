// Package gate decides whether a model version may be deployed to an
// environment. [Decide] is pure: the same policy, evidence and question give
// the same decision, to the byte, on a server, in a pipeline, and years later.
package gate

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.yaml.in/yaml/v3"

	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// Reason codes of decisions, besides those of package verify.
const (
	// Of an allow: what it rests on.
	CodeReleased   = "signature.verified"
	CodeTraced     = "lineage.verified"
	CodeCertified  = "certificate.valid"
	CodeApproved   = "approval.verified"
	CodeBreakGlass = "approval.break-glass" // without the approvals that are required

	// The environment is not to the letter what was certified, in nothing that
	// voids a certificate.
	CodeEnvironmentDiffers = "certificate.environment-differs"

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
	CodeSuspended          = "certificate.suspended"
	CodeEnvironmentChanged = "certificate.environment-changed"
	CodeRecalled           = "model.recalled"
	CodeAncestorRecalled   = "model.ancestor-recalled"

	// Fewer holders than the trust file's quorum have said so.
	CodeReleaseQuorum     = "signature.below-quorum"
	CodeLineageQuorum     = "lineage.below-quorum"
	CodeCertificateQuorum = "certificate.below-quorum"

	CodeNoApproval     = "approval.missing"
	CodeApprovalQuorum = "approval.below-quorum"
	CodeOwnApproval    = "approval.by-submitter"
	CodePusherApproval = "approval.by-pusher"

	// Of a deny where the policy requires it, and else of an allow: who pushed
	// the version was not compared with who approved it.
	CodeNoPusher = "approval.pusher-unknown"

	CodeNoStatus = "status.missing"
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

	// RequireApprovals is how many persons have to approve, none of whom
	// released the version, stated its lineage or pushed it; 0 is none. The
	// trust file's quorum can ask for more.
	RequireApprovals int `json:"requireApprovals,omitempty" yaml:"requireApprovals"`

	// RequirePusher: approvals count only if it is known who pushed the version,
	// by the trust file's accounts. Only a server knows, so that a decision
	// without it is a deny.
	RequirePusher bool `json:"requirePusher,omitempty" yaml:"requirePusher"`

	// RequireStatus: a status list that is up to date. A server that decides
	// itself has one.
	RequireStatus bool `json:"requireStatus,omitempty" yaml:"requireStatus"`
}

// DefaultPolicy requires what every model has: approvals by persons and status
// lists are asked for where people have agreed on them.
func DefaultPolicy() Policy {
	return Policy{Version: 1, RequireRelease: true, RequireLineage: true, RequireCertificate: true}
}

// ParsePolicy reads a policy file (YAML, version 1), strictly. The first three
// requirements have to be written down: one that was left out is an error, and
// not an exemption. The later ones (requireApprovals, requirePusher and
// requireStatus) are not required if they are left out, so that older files mean what they meant.
func ParsePolicy(raw []byte) (Policy, error) {
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	var f struct {
		Version            int   `yaml:"version"`
		RequireRelease     *bool `yaml:"requireRelease"`
		RequireLineage     *bool `yaml:"requireLineage"`
		RequireCertificate *bool `yaml:"requireCertificate"`
		RequireApprovals   int   `yaml:"requireApprovals"`
		RequirePusher      bool  `yaml:"requirePusher"`
		RequireStatus      bool  `yaml:"requireStatus"`
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
	case f.RequireApprovals < 0 || f.RequireApprovals > maxApprovals:
		return Policy{}, fmt.Errorf("policy file: requireApprovals is %d; write a number of persons, from 0 to %d", f.RequireApprovals, maxApprovals)
	}
	return Policy{
		Version: 1, RequireRelease: *f.RequireRelease, RequireLineage: *f.RequireLineage, RequireCertificate: *f.RequireCertificate,
		RequireApprovals: f.RequireApprovals, RequirePusher: f.RequirePusher, RequireStatus: f.RequireStatus,
	}, nil
}

const maxApprovals = 100

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

	// Documents are those of the environment that are at hand: the current one,
	// and the ones of [Measured]. Where one is missing, it is not known what has
	// changed between them, and anything may have.
	Documents map[digest.Digest]attest.Environment

	Now time.Time

	// BreakGlass: somebody who may has said that it is to be deployed without
	// the approvals that are required, and answers for it. Nothing else is
	// let pass for that.
	BreakGlass bool
}

// A Decision answers a question.
type Decision struct {
	Allow               bool          `json:"allow"`
	Model               digest.Digest `json:"model"`
	Repository          string        `json:"repository"`
	Environment         string        `json:"environment"`
	EnvironmentDocument digest.Digest `json:"environmentDocument,omitempty"`

	// BreakGlass: it was allowed without the approvals that are required.
	BreakGlass bool `json:"breakGlass,omitempty"`

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
	c.status()
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
	if p.RequireApprovals > 0 || ev.Quorums[verify.Approval] > 0 {
		c.approvals()
	}
	d := Decision{
		Allow: len(c.against) == 0, BreakGlass: c.broken && len(c.against) == 0, Model: q.Model, Repository: q.Repository,
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
	broken  bool
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

// Measured lists the documents of an environment for which certificates among
// the evidence were issued.
func Measured(ev *verify.Evidence, environment string) (list []digest.Digest) {
	for _, f := range ev.Facts {
		cert, ok := verify.Predicate[attest.Certificate](f)
		if !ok || cert.EnvironmentName != environment {
			continue
		}
		if d, err := cert.Environment.Digest.OCI(); err == nil && !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	return list
}

// changed compares the environment as it is with what was measured: voids says
// why a certificate does not hold any more, and stands what changed that leaves
// it standing. Both are "" if nothing did.
func (c *court) changed(measured digest.Digest) (voids, stands string) {
	if measured == c.q.EnvironmentDocument {
		return "", ""
	}
	before, had := c.q.Documents[measured]
	now, has := c.q.Documents[c.q.EnvironmentDocument]
	if !had || !has {
		return "the environment has changed since it was certified, and its documents are not at hand to see what; see 'assay env diff'", ""
	}
	var hard, soft []string
	for _, x := range attest.Diff(before, now) {
		what := fmt.Sprintf("%s was %s and is %s", x.Field, cmp.Or(x.Old, "not known"), cmp.Or(x.New, "not known"))
		if x.Trigger == attest.Soft {
			soft = append(soft, what)
		} else {
			hard = append(hard, what)
		}
	}
	switch {
	case len(hard) > 0:
		return "the environment has changed since it was certified: " + some(hard) + "; see 'assay env diff'", ""
	case len(soft) > 0:
		return "", "since it was certified, what the answer should not depend on has changed: " + some(soft)
	}
	return "", ""
}

// some shows the first of a list.
func some(list []string) string {
	const most = 3
	if len(list) > most {
		return fmt.Sprintf("%s, and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
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

// status: a list that is there has to be up to date, whether it is required
// or not.
func (c *court) status() {
	switch s := c.ev.Status; {
	case s == nil && c.p.RequireStatus:
		c.deny(CodeNoStatus, "fetch one and name it: assay trust status --out FILE; assay gate --status FILE …", "the policy requires a status list, and there is none")
	case s != nil:
		var f *verify.Failure
		if err := s.Current(c.q.Now); errors.As(err, &f) {
			c.deny(f.Code, f.Remedy, f.Message)
		}
	}
}

// listed returns what the status list says against something, if it does.
func (c *court) listed(d digest.Digest) (e attest.StatusEntry, ok bool) {
	if c.ev.Status == nil {
		return e, false
	}
	e, ok = c.ev.Status.List.Find(d)
	return e, ok && (e.Until.IsZero() || c.q.Now.Before(e.Until))
}

// withdrawn returns the statement that holds against something, of those that
// are there.
func (c *court) withdrawn(d digest.Digest) (f verify.Fact, w attest.Withdrawal, ok bool) {
	var facts []verify.Fact
	var list []attest.Withdrawal
	for _, f := range c.verified(d, attest.PredicateWithdrawal) {
		if w, ok := verify.Predicate[attest.Withdrawal](f); ok {
			facts, list = append(facts, f), append(list, w)
		}
	}
	i := attest.InForce(list, c.q.Now)
	if i < 0 {
		return f, w, false
	}
	return facts[i], list[i], true
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// how says what was done to something: "withdrawn", or "suspended until" a
// time.
func how(until time.Time) string {
	if until.IsZero() {
		return "withdrawn"
	}
	return "suspended until " + at(until)
}

// instead is what to do about something that was withdrawn or suspended.
func instead(until time.Time, otherwise string) string {
	if until.IsZero() {
		return otherwise
	}
	return "wait until " + at(until) + ", or have it lifted: assay withdraw --lift; or " + otherwise
}

// enough says whether as many holders as the trust file asks for have made
// verified statements, and is a reason against it if not.
func (c *court) enough(role verify.Role, facts []verify.Fact, code, remedy string) bool {
	need := max(1, c.ev.Quorums[role])
	var holders []string
	var referrers []digest.Digest
	for _, f := range facts {
		if !slices.Contains(holders, f.Holder) {
			holders, referrers = append(holders, f.Holder), append(referrers, f.Referrer)
		}
	}
	if len(holders) < need {
		c.deny(code, remedy+", signed by somebody else who has the role "+string(role),
			fmt.Sprintf("%d of %d that the trust file asks for have said so: %s", len(holders), need, strings.Join(holders, ", ")), referrers...)
		return false
	}
	return true
}

// approvals: persons who approve, and who did not submit it.
func (c *court) approvals() {
	need := max(c.p.RequireApprovals, c.ev.Quorums[verify.Approval])
	submitters := map[string]bool{}
	for _, f := range c.ev.Facts {
		if _, ok := f.Verified(); ok && f.About == c.q.Model && (f.Role == verify.Release || f.Role == verify.Provenance) {
			submitters[f.Holder] = true
		}
	}
	var persons []string
	var referrers []digest.Digest
	var against []Reason
	for _, f := range c.verified(c.q.Model, attest.PredicateApproval) {
		a, ok := verify.Predicate[attest.Approval](f)
		// "Review", "responsibility" and "authorship" are signatures too, and
		// mean something else (21 CFR 11.50).
		if !ok || a.Meaning != attest.MeaningApproval {
			continue
		}
		if submitters[f.Holder] {
			against = append(against, Reason{CodeOwnApproval, f.Holder + " approved what they submitted themselves", "have somebody else approve it", []digest.Digest{f.Referrer}})
			continue
		}
		if c.ev.Submission != nil && slices.Contains(c.ev.Submission.Holders, f.Holder) {
			against = append(against, Reason{CodePusherApproval, f.Holder + " approved what was pushed from an account of theirs", "have somebody else approve it", []digest.Digest{f.Referrer}})
			continue
		}
		if !slices.Contains(persons, f.Holder) {
			persons, referrers = append(persons, f.Holder), append(referrers, f.Referrer)
		}
	}
	unknown := c.pusherUnknown()
	if len(persons) >= need && (unknown.Code == "" || !c.p.RequirePusher) {
		if unknown.Code != "" && c.ev.Accounts {
			c.rest(unknown.Code, unknown.Message)
		}
		c.rest(CodeApproved, fmt.Sprintf("approved by %s (%d required)", strings.Join(persons, ", "), need), referrers...)
		return
	}
	if c.q.BreakGlass {
		c.broken = true
		message := fmt.Sprintf("BREAK GLASS: %d of %d approvals are there", len(persons), need)
		if len(persons) >= need {
			message += ", and " + unknown.Message
		}
		c.rest(CodeBreakGlass, message, referrers...)
		return
	}
	if len(persons) >= need {
		c.deny(unknown.Code, unknown.Remedy, unknown.Message)
		return
	}
	remedy := "assay approve --key approver.key --person ID --reason TEXT " + c.reference()
	c.against = append(c.against, against...)
	if len(persons) > 0 {
		c.deny(CodeApprovalQuorum, remedy, fmt.Sprintf("%d of %d approvals are there: %s", len(persons), need, strings.Join(persons, ", ")), referrers...)
		return
	}
	c.failed(attest.PredicateApproval)
	c.deny(CodeNoApproval, remedy, fmt.Sprintf("no approval verifies, and %d are required", need))
}

// pusherUnknown is why nobody can tell whether who pushed the version is
// another person than who approved it; no code if it is known.
func (c *court) pusherUnknown() Reason {
	switch s := c.ev.Submission; {
	case s == nil:
		return Reason{CodeNoPusher, "who pushed it is in the log of the server alone, so it was not compared with who approved it", "ask the server: assay gate without --offline and --layout", nil}
	case len(s.Unknown) > 0:
		return Reason{CodeNoPusher, "it was pushed from " + strings.Join(s.Unknown, ", ") + ", which is nobody's account in the trust file",
			"write the account under accounts of its holder in the trust file", nil}
	case len(s.Holders) == 0:
		return Reason{CodeNoPusher, "the server does not know who pushed it", "push it to this repository", nil}
	}
	return Reason{}
}

// recalls: what was withdrawn, by a statement that is there or by the status
// list. The list is asked only for what no statement says already, so whoever
// has the statements decides alike with and without one.
func (c *court) recalls() {
	other, without := "deploy another version", "train again without it, or deploy another version"
	if f, w, ok := c.withdrawn(c.q.Model); ok {
		c.deny(CodeRecalled, instead(w.Until, other), "the model was "+how(w.Until)+": "+w.Reason, f.Referrer)
	} else if e, ok := c.listed(c.q.Model); ok {
		c.deny(CodeRecalled, instead(e.Until, other), fmt.Sprintf("the status list has the model as %s since %s", how(e.Until), at(e.Since)))
	}
	for _, d := range c.ancestors() {
		if d == c.q.Model {
			continue
		}
		if f, w, ok := c.withdrawn(d); ok {
			c.deny(CodeAncestorRecalled, instead(w.Until, without), fmt.Sprintf("it descends from %s, which was %s: %s", d, how(w.Until), w.Reason), f.Referrer)
		} else if e, ok := c.listed(d); ok {
			c.deny(CodeAncestorRecalled, instead(e.Until, without), fmt.Sprintf("it descends from %s, which the status list has as %s since %s", d, how(e.Until), at(e.Since)))
		}
	}
}

// ancestors are what verified lineage names as parents, of the model or of a
// parent of it.
func (c *court) ancestors() (list []digest.Digest) {
	for _, f := range c.ev.Facts {
		if l, ok := verify.Predicate[attest.Lineage](f); ok {
			for _, p := range l.Parents {
				if d, err := p.Digest.OCI(); err == nil && !slices.Contains(list, d) {
					list = append(list, d)
				}
			}
		}
	}
	return list
}

func (c *court) release() {
	remedy := "assay sign --key release.key " + c.reference()
	if facts := c.verified(c.q.Model, attest.PredicateSignature); len(facts) > 0 {
		if c.enough(verify.Release, facts, CodeReleaseQuorum, remedy) {
			c.rest(CodeReleased, "released by "+facts[0].Identity, facts[0].Referrer)
		}
		return
	}
	c.failed(attest.PredicateSignature)
	c.deny(CodeNoRelease, remedy, "no release signature verifies")
}

func (c *court) lineage() {
	facts := c.verified(c.q.Model, attest.PredicateLineage)
	remedy := "assay lineage record --key provenance.key --dataset NAME=FILE " + c.reference()
	for _, f := range facts {
		l, ok := verify.Predicate[attest.Lineage](f)
		if !ok {
			continue
		}
		for _, d := range l.Datasets {
			if d.Relation == attest.TrainedOn {
				if c.enough(verify.Provenance, facts, CodeLineageQuorum, remedy) {
					c.rest(CodeTraced, fmt.Sprintf("lineage stated by %s: %d parents, %d datasets, %d code revisions", f.Identity, len(l.Parents), len(l.Datasets), len(l.Code)), f.Referrer)
				}
				return
			}
		}
	}
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
	var good []verify.Fact
	rests, stands := "", ""
	for _, f := range c.verified(c.q.Model, attest.PredicateCertificate) {
		cert, ok := verify.Predicate[attest.Certificate](f)
		if !ok || cert.EnvironmentName != c.q.Environment {
			continue
		}
		measured, err := cert.Environment.Digest.OCI()
		voids, soft := c.changed(measured)
		by, w, withdrawn := c.withdrawn(f.Referrer)
		e, listed := c.listed(f.Referrer)
		code := func(until time.Time) string {
			if until.IsZero() {
				return CodeWithdrawn
			}
			return CodeSuspended
		}
		switch {
		case withdrawn:
			reasons = append(reasons, Reason{code(w.Until), "the certificate was " + how(w.Until), instead(w.Until, again), []digest.Digest{f.Referrer, by.Referrer}})
		case listed:
			reasons = append(reasons, Reason{code(e.Until), fmt.Sprintf("the status list has the certificate as %s since %s", how(e.Until), at(e.Since)), instead(e.Until, again), []digest.Digest{f.Referrer}})
		case err != nil || voids != "":
			reasons = append(reasons, Reason{CodeEnvironmentChanged, voids, again, []digest.Digest{f.Referrer}})
		case c.q.Now.Before(cert.Validity.NotBefore):
			reasons = append(reasons, Reason{CodeNotYetValid, "the certificate is valid from " + at(cert.Validity.NotBefore) + " on", "wait", []digest.Digest{f.Referrer}})
		case !c.q.Now.Before(cert.Validity.NotAfter):
			reasons = append(reasons, Reason{CodeExpired, "the certificate expired at " + at(cert.Validity.NotAfter), again, []digest.Digest{f.Referrer}})
		case !cert.Validity.Contains(c.q.Now) || cert.Verdict != attest.Certified:
			reasons = append(reasons, Reason{CodeNoCertificate, "the certificate does not certify", again, []digest.Digest{f.Referrer}})
		default:
			if good = append(good, f); rests == "" {
				rests, stands = fmt.Sprintf("certified by %s until %s: %s", f.Identity, at(cert.Validity.NotAfter), cert.Claim), soft
			}
		}
	}
	if len(good) > 0 {
		if c.enough(verify.Conformance, good, CodeCertificateQuorum, again) {
			c.rest(CodeCertified, rests, good[0].Referrer)
			if stands != "" {
				c.rest(CodeEnvironmentDiffers, stands, good[0].Referrer)
			}
		}
		return
	}
	if len(reasons) > 0 {
		c.against = append(c.against, reasons...)
		return
	}
	c.failed(attest.PredicateCertificate)
	c.deny(CodeNoCertificate, again, "no certificate for "+c.q.Environment)
}
