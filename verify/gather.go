package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/verify/attest"
)

// A Source is where evidence is stored: the server's own index, an OCI
// registry reached over HTTP, the OCI layout of an evidence pack. One
// repository of it.
type Source interface {
	// Referrers lists what was attached to a subject: none is no error.
	Referrers(ctx context.Context, subject digest.Digest) ([]ocispec.Descriptor, error)

	// Fetch returns the bytes of a manifest or blob, with the descriptor's
	// digest and size checked.
	Fetch(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
}

// An Admitter is a Source that knows when its log admitted a manifest.
type Admitter interface {
	Admitted(ctx context.Context, manifest digest.Digest) (time.Time, error)
}

// A Tagger is a Source that finds manifests by tag, where cosign before
// version 3 put its signatures.
type Tagger interface {
	// Tagged returns what a tag names; ok is false if there is no such tag.
	Tagged(ctx context.Context, tag string) (desc ocispec.Descriptor, ok bool, err error)
}

// A Rememberer is a Source that knows what verification said before under a
// trust file, so that what cannot verify is not read again each time.
type Rememberer interface {
	// Failed returns why a statement did not verify under the trust file, or
	// nil if it did or if nobody knows.
	Failed(ctx context.Context, subject, referrer, trust digest.Digest) (*Failure, error)
}

// A Submitter is a Source that knows from which accounts a manifest was pushed.
// A registry does, by its log; others do not, and say nothing.
type Submitter interface {
	// Submitters returns the accounts that pushed a manifest or made a version
	// of it: opaque ids.
	Submitters(ctx context.Context, manifest digest.Digest) (accounts []string, err error)
}

// Bounds of what is gathered, so that one hostile repository slows nobody.
const (
	maxReferrers  = 20_000
	maxManifest   = 1 << 20
	maxAncestors  = 64
	maxStatements = 1_000
	maxBytes      = 64 << 20 // of all bundles together
)

// GatherOptions say in which light evidence is looked at.
type GatherOptions struct {
	Trust      *Trust
	Repository string
	Now        time.Time

	// Status is what is known to be withdrawn, besides what withdrawals the
	// source holds; nil if nobody was asked.
	Status *Status
}

// Evidence is all that is said about a model, verified or not.
type Evidence struct {
	Subject    digest.Digest `json:"subject"`
	Repository string        `json:"repository"`
	Trust      digest.Digest `json:"trust"`

	// Facts are sorted by what they are about, then by referrer.
	Facts []Fact `json:"facts"`

	// Quorums are how many holders have to state what needs a role, where
	// that is more than one.
	Quorums map[Role]int `json:"quorums,omitempty"`

	// Accounts: the trust file says whose accounts are. Submission is who pushed
	// the model, and nil if the source does not know.
	Accounts   bool        `json:"accounts,omitempty"`
	Submission *Submission `json:"submission,omitempty"`

	// Status is the status list that was there; nil if none was.
	Status *Status `json:"status,omitempty"`

	// Incomplete says why not everything could be read; "" if it was. A gate
	// takes incomplete evidence as none.
	Incomplete string `json:"incomplete,omitempty"`
}

// A Submission is who put a model where it is: the accounts that pushed it or
// made a version of it.
type Submission struct {
	// Holders are those whose accounts they are by the trust file, and Unknown
	// the accounts that it gives to nobody.
	Holders []string `json:"holders,omitempty"`
	Unknown []string `json:"unknown,omitempty"`
}

// A Fact is one statement that was found, and what verification said of it.
type Fact struct {
	// About is what the statement was attached to: the model, or a
	// certificate of it, or an ancestor.
	About digest.Digest `json:"about"`

	// Referrer is the manifest that carries the statement.
	Referrer digest.Digest `json:"referrer"`

	// PredicateType is the signed one if it verified, else what the
	// manifest's annotation claims.
	PredicateType string `json:"predicateType,omitempty"`

	// Outcome is "verified" or the code of a failure.
	Outcome  string `json:"outcome"`
	Message  string `json:"message,omitempty"`
	Remedy   string `json:"remedy,omitempty"`
	Identity string `json:"identity,omitempty"`
	Role     Role   `json:"role,omitempty"`

	// Holder is whose identity it is, and Signed when it was signed.
	Holder string `json:"holder,omitempty"`
	Signed *Time  `json:"signed,omitempty"`

	verified *Verified
}

// Verified returns the proof object, if the statement verified.
func (f Fact) Verified() (*Verified, bool) { return f.verified, f.verified != nil }

// Predicate returns the predicate of a verified statement of type P.
func Predicate[P attest.Predicate](f Fact) (p P, ok bool) {
	if f.verified == nil {
		return p, false
	}
	parsed, err := attest.ParsePredicate(f.verified.Statement)
	if err != nil {
		return p, false
	}
	p, ok = parsed.(P)
	return p, ok
}

// Gather reads and verifies everything that is attached to a model, to its
// certificates, and to its ancestors as verified lineage names them. What
// cannot be read or verified is a fact too, with the reason: nothing is left
// out in silence. The result does not depend on which kind of source it came
// from.
func Gather(ctx context.Context, src Source, subject digest.Digest, opt GatherOptions) (*Evidence, error) {
	if opt.Now.IsZero() {
		return nil, fmt.Errorf("gathering evidence: the time of the question is missing")
	}
	if opt.Trust == nil {
		opt.Trust = NoTrust()
	}
	ev := &Evidence{Subject: subject, Repository: opt.Repository, Trust: opt.Trust.Digest(), Facts: []Fact{}, Status: opt.Status}
	for _, role := range Roles {
		if n := opt.Trust.Quorum(role, opt.Repository); n > 1 {
			if ev.Quorums == nil {
				ev.Quorums = map[Role]int{}
			}
			ev.Quorums[role] = n
		}
	}
	ev.Accounts = len(opt.Trust.accounts) > 0
	if s, ok := src.(Submitter); ok {
		accounts, err := s.Submitters(ctx, subject)
		if err != nil {
			return nil, fmt.Errorf("who pushed %s: %w", subject, err)
		}
		ev.Submission = opt.Trust.submission(accounts)
	}
	g := &gatherer{src: src, opt: opt, seen: map[digest.Digest]bool{}}
	if err := g.about(ctx, subject); err != nil {
		return nil, err
	}
	ancestors := 0
	for i := 0; i < len(g.facts); i++ {
		f := g.facts[i]
		switch f.PredicateType {
		case attest.PredicateCertificate:
			// A certificate is withdrawn by a statement about the manifest
			// that carries it.
			if _, ok := f.Verified(); ok {
				if err := g.about(ctx, f.Referrer); err != nil {
					return nil, err
				}
			}
		case attest.PredicateLineage:
			l, ok := Predicate[attest.Lineage](f)
			if !ok {
				continue
			}
			for _, p := range l.Parents {
				parent, err := p.Digest.OCI()
				if err != nil {
					continue // cannot be: it was validated
				}
				if ancestors++; ancestors > maxAncestors {
					g.incomplete = fmt.Sprintf("more than %d ancestors", maxAncestors)
					break
				}
				if err := g.about(ctx, parent); err != nil {
					return nil, err
				}
			}
		}
	}
	slices.SortStableFunc(g.facts, func(a, b Fact) int {
		if c := strings.Compare(string(a.About), string(b.About)); c != 0 {
			return c
		}
		return strings.Compare(string(a.Referrer), string(b.Referrer))
	})
	ev.Facts = append(ev.Facts, g.facts...)
	ev.Incomplete = g.incomplete
	return ev, nil
}

type gatherer struct {
	src        Source
	opt        GatherOptions
	seen       map[digest.Digest]bool
	facts      []Fact
	bytes      int64
	incomplete string
}

// spend counts bytes that are about to be read, and refuses too many.
func (g *gatherer) spend(n int64) error {
	if g.bytes += n; g.bytes > maxBytes {
		g.incomplete = fmt.Sprintf("more than %d MiB of signed statements", maxBytes>>20)
		return fail(CodeTooLarge, "remove what should not be attached", "all statements together have more than %d bytes", maxBytes)
	}
	return nil
}

// about adds the facts about one subject.
func (g *gatherer) about(ctx context.Context, subject digest.Digest) error {
	if g.seen[subject] {
		return nil
	}
	g.seen[subject] = true
	list, err := g.src.Referrers(ctx, subject)
	if err != nil {
		return fmt.Errorf("listing what is attached to %s: %w", subject, err)
	}
	if len(list) > maxReferrers {
		g.incomplete = fmt.Sprintf("%s has %d referrers, %d are read", subject, len(list), maxReferrers)
		list = list[:maxReferrers]
	}
	for _, desc := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, unverifiable := Unverifiable(desc.ArtifactType)
		var found []Fact
		switch {
		case strings.HasPrefix(desc.ArtifactType, bundleArtifact):
			found = []Fact{g.fact(ctx, subject, desc)}
		case IsLegacy(desc.ArtifactType):
			found = g.legacy(ctx, subject, desc)
		case unverifiable:
			found = []Fact{{About: subject, Referrer: desc.Digest, PredicateType: desc.ArtifactType, Outcome: f.Code, Message: f.Message, Remedy: f.Remedy}}
		default:
			continue // a plan, a replay, somebody's SBOM: no statement
		}
		if !g.add(found) {
			return nil
		}
	}
	if t, ok := g.src.(Tagger); ok {
		for _, tag := range legacyTags(subject) {
			desc, ok, err := t.Tagged(ctx, tag)
			if err != nil {
				return fmt.Errorf("looking for the tag %s: %w", tag, err)
			}
			if ok && !g.add(g.legacy(ctx, subject, desc)) {
				return nil
			}
		}
	}
	return nil
}

// bundleArtifact begins the artifact types and layer media types of Sigstore
// bundles of all versions.
const bundleArtifact = "application/vnd.dev.sigstore.bundle"

// add keeps facts, and reports whether there is room for more.
func (g *gatherer) add(found []Fact) bool {
	if len(g.facts)+len(found) > maxStatements {
		g.incomplete = fmt.Sprintf("more than %d signed statements", maxStatements)
		return false
	}
	g.facts = append(g.facts, found...)
	return true
}

// legacy are the facts in a manifest of cosign before version 3.
func (g *gatherer) legacy(ctx context.Context, subject digest.Digest, desc ocispec.Descriptor) (facts []Fact) {
	said, err := g.readLegacy(ctx, subject, desc)
	if err != nil {
		said = []Said{{Failure: failureOf(err), Claimed: attest.PredicateSignature}}
	}
	for _, s := range said {
		f := Fact{About: subject, Referrer: desc.Digest, PredicateType: s.Claimed}
		f.settle(s.Verified, s.Failure)
		facts = append(facts, f)
	}
	return facts
}

func (g *gatherer) readLegacy(ctx context.Context, subject digest.Digest, desc ocispec.Descriptor) ([]Said, error) {
	if desc.Size > maxManifest {
		return nil, fail(CodeTooLarge, "attach each signature for itself", "its manifest has %d bytes", desc.Size)
	}
	body, err := g.src.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	c, err := g.contextOf(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	return Legacy(ctx, body, subject, func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		if err := g.spend(d.Size); err != nil {
			return nil, err
		}
		return g.src.Fetch(ctx, d)
	}, g.opt.Trust, c)
}

// settle says what came of a statement.
func (f *Fact) settle(v *Verified, why *Failure) {
	if why != nil {
		f.Outcome, f.Message, f.Remedy = why.Code, why.Message, why.Remedy
		return
	}
	f.Outcome, f.verified = OutcomeVerified, v
	f.PredicateType, f.Identity, f.Role = v.Statement.PredicateType, v.Identity, v.Role
	f.Holder, f.Signed = v.Holder, &v.Signed
}

func (g *gatherer) fact(ctx context.Context, subject digest.Digest, desc ocispec.Descriptor) Fact {
	f := Fact{About: subject, Referrer: desc.Digest, PredicateType: ClaimedPredicate(desc.Annotations)}
	v, err := g.verify(ctx, subject, desc)
	if err != nil {
		f.settle(nil, failureOf(err))
	} else {
		f.settle(v, nil)
	}
	return f
}

// ClaimedPredicate is which predicate type the annotations of a manifest with a
// bundle claim; of one that signs the manifest itself, that of a release.
func ClaimedPredicate(annotations map[string]string) string {
	if p := annotations[attest.AnnotationPredicate]; p != "" || annotations[attest.AnnotationBundleKind] != "message-signature" {
		return p
	}
	return attest.PredicateSignature
}

func (g *gatherer) verify(ctx context.Context, subject digest.Digest, desc ocispec.Descriptor) (*Verified, error) {
	if r, ok := g.src.(Rememberer); ok {
		if f, err := r.Failed(ctx, subject, desc.Digest, g.opt.Trust.Digest()); err != nil || f != nil {
			if err == nil {
				err = f
			}
			return nil, err
		}
	}
	if desc.Size > maxManifest {
		return nil, fail(CodeTooLarge, "attach each signature for itself", "its manifest has %d bytes", desc.Size)
	}
	body, err := g.src.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	layer, err := BundleLayer(body, subject)
	if err != nil {
		return nil, err
	}
	if err := g.spend(layer.Size); err != nil {
		return nil, err
	}
	raw, err := g.src.Fetch(ctx, layer)
	if err != nil {
		return nil, err
	}
	c, err := g.contextOf(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	return Bundle(raw, subject, g.opt.Trust, c)
}

// BundleLayer returns the descriptor of the bundle in a manifest that attaches
// one to subject. The error is a *[Failure].
func BundleLayer(manifest []byte, subject digest.Digest) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return ocispec.Descriptor{}, fail(CodeUnreadable, "", "its manifest does not parse: %v", err)
	}
	switch {
	case m.Subject == nil || m.Subject.Digest != subject:
		return ocispec.Descriptor{}, fail(CodeSubject, "attach it to the content it speaks of", "its manifest is not attached to %s", subject)
	case len(m.Layers) != 1:
		return ocispec.Descriptor{}, fail(CodeBundleInvalid, "attach one bundle a manifest", "its manifest has %d layers; a bundle's has one", len(m.Layers))
	case !strings.HasPrefix(m.Layers[0].MediaType, bundleArtifact):
		return ocispec.Descriptor{}, fail(CodeBundleInvalid, "attach a Sigstore bundle", "its layer is of type %q", m.Layers[0].MediaType)
	case m.Layers[0].Size > MaxBundle:
		return ocispec.Descriptor{}, fail(CodeTooLarge, "keep large evidence in a blob and name it by digest", "the bundle has %d bytes, at most %d are read", m.Layers[0].Size, MaxBundle)
	}
	return m.Layers[0], nil
}
