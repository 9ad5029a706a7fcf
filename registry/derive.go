package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/oms"
)

// errTrustMoved says that the trust file changed between the verification of
// a statement and its commit; the push verifies again.
var errTrustMoved = errors.New("the trust file was changed meanwhile")

// errTooMuch says that a blob is larger than what is read of its kind, whatever
// the manifest that names it says.
var errTooMuch = errors.New("it is too large to be read")

// readSigned reads a blob with a signature. One that is too large is a
// *[verify.Failure], and is not opened.
func (r *Registry) readSigned(ctx context.Context, repo string, d digest.Digest) ([]byte, error) {
	raw, err := r.readBlob(ctx, repo, d, verify.MaxBundle)
	if errors.Is(err, errTooMuch) {
		err = &verify.Failure{Code: verify.CodeTooLarge, Message: err.Error(), Remedy: "keep large evidence in a blob and name it by digest"}
	}
	return raw, err
}

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
	Holder        string // whose identity it is
	Role          string
	Signed        verify.Time   // when, and how that is known; of a verified one
	Trust         digest.Digest // of the trust file it rests on
	At            time.Time
	LogIndex      int64
	Predicate     json.RawMessage // as signed; believe it only if verified
}

// factRow is how the facts of one manifest are stored: one, or, of cosign
// before version 3, several.
type factRow struct {
	saidRow
	More  []saidRow     `json:"more,omitempty"`
	Trust digest.Digest `json:"trust"`

	// Generation is that of the program that verified it: see [generation].
	Generation int `json:"generation,omitempty"`

	At    time.Time `json:"at"`
	Index int64     `json:"index"`
	Rows  [][]byte  `json:"rows,omitempty"` // keys of what follows from it
}

// generation counts what verification can do: what a program of another
// generation said is not remembered, and is verified again after an upgrade, as
// after a change of the trust file. 1 verifies what cosign before version 3
// signed with a certificate, and bundles that sign a manifest.
const generation = 1

func newFact(trust *verify.Trust) *factRow {
	return &factRow{Trust: trust.Digest(), Generation: generation}
}

// current reports whether it is what verification says now under a trust file.
func (f *factRow) current(trust digest.Digest) bool {
	return f.Trust == trust && f.Generation == generation
}

type saidRow struct {
	PredicateType string          `json:"predicateType,omitempty"`
	Outcome       string          `json:"outcome"`
	Message       string          `json:"message,omitempty"`
	Remedy        string          `json:"remedy,omitempty"`
	Identity      string          `json:"identity,omitempty"`
	Holder        string          `json:"holder,omitempty"`
	Role          string          `json:"role,omitempty"`
	Signed        verify.Time     `json:"signed,omitzero"`
	Predicate     json.RawMessage `json:"predicate,omitempty"`
}

// said is the row of an outcome.
func said(v *verify.Verified, why *verify.Failure, claimed string) saidRow {
	if why != nil {
		return saidRow{PredicateType: claimed, Outcome: why.Code, Message: why.Message, Remedy: why.Remedy}
	}
	row := saidRow{
		PredicateType: v.Statement.PredicateType, Outcome: verify.OutcomeVerified,
		Identity: v.Identity, Holder: v.Holder, Role: string(v.Role), Signed: v.Signed,
	}
	if len(v.Statement.Predicate) <= maxPredicate {
		row.Predicate = v.Statement.Predicate
	}
	return row
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

// derived is what follows from a manifest besides itself: the facts that its
// signed statements are, and what those say of lineage and deployments.
type derived struct {
	subject digest.Digest
	fact    *factRow
	trust   int64 // the log leaf that put the trust file in force, which this rests on
}

// derive reads and verifies the statement that m attaches, if it does, in the
// light of a trust file. at is when it is, or was, admitted: evidence that it
// existed then.
func (r *Registry) derive(ctx context.Context, repo string, m *manifest, trust *verify.Trust, at time.Time) (derived, error) {
	if m.subject == "" {
		return derived{}, nil
	}
	if verify.IsLegacy(m.artifactType) {
		return r.deriveLegacy(ctx, repo, m, m.subject, trust, at)
	}
	if why, ok := verify.Unverifiable(m.artifactType); ok {
		f := newFact(trust)
		f.saidRow = said(nil, why, m.artifactType)
		return derived{subject: m.subject, fact: f}, nil
	}
	if !strings.HasPrefix(m.artifactType, "application/vnd.dev.sigstore.bundle") {
		return derived{}, nil
	}
	defer r.verifying()()
	f := newFact(trust)
	v, raw, err := r.verifyStatement(ctx, repo, m, trust, at)
	var failure *verify.Failure
	if err == nil {
		f.saidRow = said(v, nil, "")
		return derived{subject: m.subject, fact: f}, nil
	}
	c, readable := claimed(raw)
	if readable && (c.PredicateType == oms.Predicate || c.PredicateType == oms.PredicateV02) {
		// Its subject is the digest of a list of files, and no manifest's.
		f.saidRow, err = r.verifyOMS(ctx, repo, m.subject, raw, c.PredicateType, trust, at)
		return derived{subject: m.subject, fact: f}, err
	}
	switch {
	case errors.As(err, &failure):
		f.saidRow = said(nil, failure, verify.ClaimedPredicate(m.annotations))
		if readable {
			f.PredicateType = c.PredicateType
			if len(c.Predicate) <= maxPredicate {
				f.Predicate = c.Predicate
			}
		}
	case errors.Is(err, ErrBlobUnknown):
		return derived{}, nil // the change refuses the manifest for it
	default:
		return derived{}, err
	}
	return derived{subject: m.subject, fact: f}, nil
}

// verifyOMS verifies a signature of model signing over the files of the
// manifest it is attached to, from the digests in that manifest. A weight is
// never opened.
func (r *Registry) verifyOMS(ctx context.Context, repo string, model digest.Digest, raw []byte, claims string, trust *verify.Trust, at time.Time) (saidRow, error) {
	failed := func(err error) (saidRow, error) {
		var f *verify.Failure
		if errors.As(err, &f) {
			return said(nil, f, claims), nil
		}
		return saidRow{}, err
	}
	m, err := r.Manifest(ctx, access.System(), repo, string(model))
	if errors.Is(err, ErrManifestUnknown) || errors.Is(err, ErrNameUnknown) {
		return failed(&verify.Failure{Code: verify.CodeSubject, Message: "the model it is attached to is not here, so there are no files to compare with", Remedy: "push the model first, and then its signature"})
	}
	if err != nil {
		return saidRow{}, err
	}
	files, err := oms.Files(ctx, m.Body, func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		return nil, &verify.Failure{Code: oms.CodeUnsupported, Message: "the model is packed in archives, which are not read while it is pushed", Remedy: "check it with 'assay verify --oms', which reads them; or push bare files"}
	})
	if err != nil {
		return failed(err)
	}
	v, err := oms.Verify(raw, files, trust, verify.Context{Repository: repo, AdmittedAt: at, Now: r.clock()})
	if err != nil {
		return failed(err)
	}
	return saidRow{
		PredicateType: claims, Outcome: verify.OutcomeVerified, Identity: v.Identity, Holder: v.Holder, Role: string(v.Role), Signed: v.SignedPayload.Signed,
	}, nil
}

// deriveLegacy does the same for what cosign before version 3 attached.
func (r *Registry) deriveLegacy(ctx context.Context, repo string, m *manifest, subject digest.Digest, trust *verify.Trust, at time.Time) (derived, error) {
	defer r.verifying()()
	list, err := verify.Legacy(ctx, m.body, subject, func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		return r.readSigned(ctx, repo, d.Digest)
	}, trust, verify.Context{Repository: repo, AdmittedAt: at, Now: r.clock()})
	if errors.Is(err, ErrBlobUnknown) {
		return derived{}, nil
	}
	if err != nil {
		return derived{}, err
	}
	if len(list) == 0 {
		return derived{}, nil
	}
	f := newFact(trust)
	for i, s := range list {
		row := said(s.Verified, s.Failure, s.Claimed)
		if i == 0 {
			f.saidRow = row
		} else {
			f.More = append(f.More, row)
		}
	}
	return derived{subject: subject, fact: f}, nil
}

// verifying waits until one more statement may be verified, so that many
// large ones at once leave processors to others. The caller calls done.
func (r *Registry) verifying() (done func()) {
	r.verifiers <- struct{}{}
	return func() { <-r.verifiers }
}

func (r *Registry) verifyStatement(ctx context.Context, repo string, m *manifest, trust *verify.Trust, at time.Time) (*verify.Verified, []byte, error) {
	layer, err := verify.BundleLayer(m.body, m.subject)
	if err != nil {
		return nil, nil, err
	}
	now := verify.Context{Repository: repo, AdmittedAt: at, Now: r.clock()}
	if o := r.ahead.take(layer.Digest); o != nil {
		// That the blob is in this repository is for the change to find out.
		v, err := o.Verify(m.subject, trust, now)
		return v, o.Raw(), err
	}
	raw, err := r.readSigned(ctx, repo, layer.Digest)
	if err != nil {
		return nil, nil, err
	}
	v, err := verify.Bundle(raw, m.subject, trust, now)
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
	now, err := currentIndex(tx, documentTrust)
	if err == nil && now != d.trust {
		err = errTrustMoved
	}
	return err
}

// write stores the facts of a manifest and what follows from them, and
// returns the outcome: "verified" if one of them is.
func (d derived) write(tx *txn, repo string, referrer digest.Digest) string {
	if d.fact == nil {
		return ""
	}
	f := *d.fact
	f.At, f.Index = tx.now, tx.index
	f.store(tx, repo, d.subject, referrer)
	return f.outcome()
}

// outcome is what the log says of the facts.
func (f *factRow) outcome() string {
	for _, s := range f.More {
		if s.Outcome == verify.OutcomeVerified {
			return s.Outcome
		}
	}
	return f.Outcome
}

// store writes the row, which was admitted at f.At, and those that follow
// from it.
func (f *factRow) store(tx *txn, repo string, subject, referrer digest.Digest) {
	f.Rows = nil
	for _, s := range append([]saidRow{f.saidRow}, f.More...) {
		f.follow(tx, repo, subject, referrer, s)
	}
	tx.put(key("fact", repo, string(subject), string(referrer)), f)
}

func (f *factRow) follow(tx *txn, repo string, subject, referrer digest.Digest, s saidRow) {
	row := func(k []byte, v any) {
		tx.put(k, v)
		f.Rows = append(f.Rows, k)
	}
	p, err := attest.ParsePredicate(attest.Statement{PredicateType: s.PredicateType, Predicate: s.Predicate})
	if err != nil {
		return
	}
	verified := s.Outcome == verify.OutcomeVerified
	switch p := p.(type) {
	case attest.Lineage:
		edge := func(object attest.DigestSet, relation attest.Relation) {
			if o, err := object.OCI(); err == nil {
				row(key("edge", string(o), repo, string(subject), string(referrer)), edgeRow{relation, f.Index})
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
	case attest.Withdrawal:
		if verified {
			withdrawal := withdrawnRow{Index: f.Index, At: f.At}
			if !p.Until.IsZero() {
				withdrawal.Stated, withdrawal.Until = p.WithdrawnAt, p.Until
			}
			row(key("withdrawn", string(subject), repo, string(referrer)), withdrawal)
		}
	case attest.Deployment:
		// Only a verified deployment is an answer to "what ran there".
		if env, err := p.Environment.Digest.OCI(); err == nil && verified {
			row(key("deployed", p.EnvironmentName, number(p.From.UnixNano()), string(referrer)), deployedRow{
				Repository: repo, Model: subject, Environment: env, Basis: p.Basis, StatedBy: p.StatedBy,
				Identity: s.Identity, Index: f.Index, At: f.At,
			})
		}
	}
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
		for _, s := range append([]saidRow{f.saidRow}, f.More...) {
			list = append(list, Fact{
				Subject: subject, Referrer: digest.Digest(parts(row.Key)[2]),
				PredicateType: s.PredicateType, Outcome: s.Outcome, Message: s.Message, Remedy: s.Remedy,
				Identity: s.Identity, Holder: s.Holder, Role: s.Role, Signed: s.Signed,
				Trust: f.Trust, At: f.At, LogIndex: f.Index, Predicate: s.Predicate,
			})
		}
	}
	return list, nil
}

// indexSource is the server's own index as a source of evidence.
type indexSource struct {
	r    *Registry
	repo string
}

var (
	_ verify.Source     = indexSource{}
	_ verify.Admitter   = indexSource{}
	_ verify.Tagger     = indexSource{}
	_ verify.Rememberer = indexSource{}
	_ verify.Submitter  = indexSource{}
)

// Submitters implements [verify.Submitter], from the log: the leaf that put the
// manifest into the repository, and the one that made it a version, which after
// a deletion is an older one, and somebody else's if it was tagged later.
func (s indexSource) Submitters(ctx context.Context, d digest.Digest) (accounts []string, err error) {
	err = s.r.view(ctx, func(rd store.Reader) error {
		accounts = nil
		leaf := func(index int64) error {
			l, err := leafAt(rd, index)
			if err == nil && !slices.Contains(accounts, l.Event.Actor) {
				accounts = append(accounts, l.Event.Actor)
			}
			return err
		}
		var held heldRow
		if ok, err := load(rd, key("held", s.repo, string(d)), &held); err != nil || !ok {
			return err
		}
		if err := leaf(held.Index); err != nil {
			return err
		}
		n, err := rd.Get(key("versionof", s.repo, string(d)))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		var v versionRow
		if err == nil {
			_, err = load(rd, key("version", s.repo, string(n)), &v)
		}
		if err != nil {
			return err
		}
		return leaf(v.Index)
	})
	return accounts, err
}

func (s indexSource) Tagged(ctx context.Context, tag string) (ocispec.Descriptor, bool, error) {
	m, err := s.r.StatManifest(ctx, access.System(), s.repo, tag)
	if errors.Is(err, ErrManifestUnknown) || errors.Is(err, ErrNameUnknown) {
		return ocispec.Descriptor{}, false, nil
	}
	return m, err == nil, err
}

// Failed implements [verify.Rememberer]. Failures that another time could
// mend are not remembered.
func (s indexSource) Failed(ctx context.Context, subject, referrer, trust digest.Digest) (why *verify.Failure, err error) {
	err = s.r.view(ctx, func(rd store.Reader) error {
		var f factRow
		ok, err := load(rd, key("fact", s.repo, string(subject), string(referrer)), &f)
		if ok && f.current(trust) && f.Outcome != verify.OutcomeVerified && f.Outcome != verify.CodeWindow {
			why = &verify.Failure{Code: f.Outcome, Message: f.Message, Remedy: f.Remedy}
		}
		return err
	})
	return why, err
}

func (s indexSource) Referrers(ctx context.Context, subject digest.Digest) ([]ocispec.Descriptor, error) {
	return s.r.Referrers(ctx, access.System(), s.repo, subject, "")
}

func (s indexSource) Fetch(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.MediaType == ocispec.MediaTypeImageManifest || desc.MediaType == ocispec.MediaTypeImageIndex {
		m, err := s.r.Manifest(ctx, access.System(), s.repo, string(desc.Digest))
		return m.Body, err
	}
	return s.r.readSigned(ctx, s.repo, desc.Digest)
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
