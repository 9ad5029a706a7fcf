package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// errTrustMoved says that the trust file changed between the verification of
// a statement and its commit; the push verifies again.
var errTrustMoved = errors.New("the trust file was changed meanwhile")

// maxPredicate is the largest predicate that a fact's row repeats.
const maxPredicate = 64 << 10

// A Fact is what verification said about a signed statement when it was
// pushed.
type Fact struct {
	Subject       digest.Digest
	Referrer      digest.Digest // the manifest that carries it
	PredicateType string        // "" if the statement could not be read
	Outcome       string        // "verified" or the code of a failure
	Message       string
	Remedy        string
	Identity      string
	Role          string
	Trust         digest.Digest // of the trust file it rests on
	At            time.Time
	LogIndex      int64
	Predicate     json.RawMessage // as signed; believe it only if verified
}

// factRow is how a Fact is stored.
type factRow struct {
	PredicateType string          `json:"predicateType,omitempty"`
	Outcome       string          `json:"outcome"`
	Message       string          `json:"message,omitempty"`
	Remedy        string          `json:"remedy,omitempty"`
	Identity      string          `json:"identity,omitempty"`
	Role          string          `json:"role,omitempty"`
	Trust         digest.Digest   `json:"trust"`
	At            time.Time       `json:"at"`
	Index         int64           `json:"index"`
	Predicate     json.RawMessage `json:"predicate,omitempty"`
	Rows          [][]byte        `json:"rows,omitempty"` // keys of what follows from it
}

// edgeRow is an edge of lineage, found from its object.
type edgeRow struct {
	Relation attest.Relation `json:"relation"`
	Index    int64           `json:"index"`
}

type deployedRow struct {
	Repository  string        `json:"repository"`
	Model       digest.Digest `json:"model"`
	Environment digest.Digest `json:"environment"`
	Basis       string        `json:"basis"`
	StatedBy    string        `json:"statedBy"`
	Identity    string        `json:"identity"`
	Index       int64         `json:"index"`
	At          time.Time     `json:"at"`
}

// derived is what follows from a manifest besides itself: the fact that its
// signed statement is, and what that says of lineage and deployments.
type derived struct {
	fact     *factRow
	verified *verify.Verified
}

// derive reads and verifies the statement that m attaches, if it does, in the
// light of the trust file of now.
func (r *Registry) derive(ctx context.Context, repo string, m *manifest) (derived, error) {
	if m.subject == "" || !strings.HasPrefix(m.artifactType, "application/vnd.dev.sigstore.bundle") {
		return derived{}, nil
	}
	trust, err := r.trust(ctx)
	if err != nil {
		return derived{}, err
	}
	f := &factRow{PredicateType: m.annotations[attest.AnnotationPredicate], Trust: trust.Digest()}
	v, raw, err := r.verifyStatement(ctx, repo, m, trust)
	if raw != nil {
		if s, ok := claimed(raw); ok {
			f.PredicateType = s.PredicateType
			if len(s.Predicate) <= maxPredicate {
				f.Predicate = s.Predicate
			}
		}
	}
	var failure *verify.Failure
	switch {
	case err == nil:
		f.Outcome, f.Identity, f.Role = verify.OutcomeVerified, v.Identity, string(v.Role)
	case errors.As(err, &failure):
		f.Outcome, f.Message, f.Remedy = failure.Code, failure.Message, failure.Remedy
	case errors.Is(err, ErrBlobUnknown):
		return derived{}, nil // the change refuses the manifest for it
	default:
		return derived{}, err
	}
	return derived{f, v}, nil
}

func (r *Registry) verifyStatement(ctx context.Context, repo string, m *manifest, trust *verify.Trust) (*verify.Verified, []byte, error) {
	layer, err := verify.BundleLayer(m.body, m.subject)
	if err != nil {
		return nil, nil, err
	}
	raw, err := r.readBlob(ctx, repo, layer.Digest, verify.MaxBundle)
	if err != nil {
		return nil, nil, err
	}
	// It is being admitted now, so now is when it is known to exist.
	now := r.clock()
	v, err := verify.Bundle(raw, m.subject, trust, verify.Context{Repository: repo, AdmittedAt: now, Now: now})
	return v, raw, err
}

// claimed reads a bundle's statement without verifying anything.
func claimed(bundle []byte) (attest.Statement, bool) {
	var b struct {
		Envelope struct {
			Payload string `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if json.Unmarshal(bundle, &b) != nil {
		return attest.Statement{}, false
	}
	payload, err := base64.StdEncoding.DecodeString(b.Envelope.Payload)
	if err != nil {
		return attest.Statement{}, false
	}
	s, err := attest.ParseStatement(payload)
	return s, err == nil
}

// check refuses facts that rest on a trust file that is not the current one.
func (d derived) check(tx *txn) error {
	if d.fact == nil {
		return nil
	}
	now, err := currentDocument(tx, documentTrust)
	if err == nil && now.Digest != d.fact.Trust {
		err = errTrustMoved
	}
	return err
}

// write stores the fact and what follows from it, and returns the outcome.
func (d derived) write(tx *txn, repo string, m *manifest) string {
	if d.fact == nil {
		return ""
	}
	f := *d.fact
	f.At, f.Index = tx.now, tx.index
	row := func(k []byte, v any) {
		tx.put(k, v)
		f.Rows = append(f.Rows, k)
	}
	if p, err := attest.ParsePredicate(statementOf(f)); err == nil {
		switch p := p.(type) {
		case attest.Lineage:
			edge := func(object attest.DigestSet, relation attest.Relation) {
				if o, err := object.OCI(); err == nil {
					row(key("edge", string(o), repo, string(m.subject), string(m.digest)), edgeRow{relation, tx.index})
				}
			}
			for _, x := range p.Parents {
				edge(x.Digest, x.Relation)
			}
			for _, x := range p.Datasets {
				edge(x.Digest, x.Relation)
			}
			for _, x := range p.Code {
				edge(x.Digest, x.Relation)
			}
		case attest.Deployment:
			// Only a verified deployment is an answer to "what ran there".
			if env, err := p.Environment.Digest.OCI(); err == nil && d.verified != nil {
				row(key("deployed", p.EnvironmentName, number(p.From.UnixNano()), string(m.digest)), deployedRow{
					Repository: repo, Model: m.subject, Environment: env, Basis: p.Basis, StatedBy: p.StatedBy,
					Identity: f.Identity, Index: tx.index, At: tx.now,
				})
			}
		}
	}
	tx.put(key("fact", repo, string(m.subject), string(m.digest)), f)
	return f.Outcome
}

func statementOf(f factRow) attest.Statement {
	return attest.Statement{PredicateType: f.PredicateType, Predicate: f.Predicate}
}

// forget removes what followed from a manifest that is deleted.
func forget(tx *txn, repo string, subject, d digest.Digest) error {
	if subject == "" {
		return nil
	}
	k := key("fact", repo, string(subject), string(d))
	var f factRow
	ok, err := load(tx, k, &f)
	if err != nil || !ok {
		return err
	}
	for _, row := range f.Rows {
		tx.delete(row)
	}
	tx.delete(k)
	return nil
}

// Facts lists the signed statements about a subject in a repository, as they
// were verified at push.
func (r *Registry) Facts(ctx context.Context, actor access.Actor, repo string, subject digest.Digest) (list []Fact, err error) {
	if err := r.mayPull(actor, repo); err != nil {
		return nil, err
	}
	if err := checkDigest(subject); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		list, err = factsAbout(rd, repo, subject)
		return err
	})
	return list, err
}

func factsAbout(rd store.Reader, repo string, subject digest.Digest) (list []Fact, err error) {
	for row, err := range rd.Scan(under("fact", repo, string(subject))) {
		if err != nil {
			return nil, err
		}
		var f factRow
		if err := decode(row, &f); err != nil {
			return nil, err
		}
		list = append(list, Fact{
			Subject: subject, Referrer: digest.Digest(parts(row.Key)[2]),
			PredicateType: f.PredicateType, Outcome: f.Outcome, Message: f.Message, Remedy: f.Remedy,
			Identity: f.Identity, Role: f.Role, Trust: f.Trust, At: f.At, LogIndex: f.Index, Predicate: f.Predicate,
		})
	}
	return list, nil
}

// indexSource is the server's own index as a source of evidence.
type indexSource struct {
	r    *Registry
	repo string
}

var (
	_ verify.Source   = indexSource{}
	_ verify.Admitter = indexSource{}
)

func (s indexSource) Referrers(ctx context.Context, subject digest.Digest) ([]ocispec.Descriptor, error) {
	return s.r.Referrers(ctx, access.System(), s.repo, subject, "")
}

func (s indexSource) Fetch(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.MediaType == ocispec.MediaTypeImageManifest || desc.MediaType == ocispec.MediaTypeImageIndex {
		m, err := s.r.Manifest(ctx, access.System(), s.repo, string(desc.Digest))
		return m.Body, err
	}
	return s.r.readBlob(ctx, s.repo, desc.Digest, verify.MaxBundle)
}

func (s indexSource) Admitted(ctx context.Context, d digest.Digest) (at time.Time, err error) {
	err = s.r.view(ctx, func(rd store.Reader) error {
		var held heldRow
		_, err := load(rd, key("held", s.repo, string(d)), &held)
		at = held.At
		return err
	})
	return at, err
}
