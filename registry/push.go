package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// A PutManifest is a manifest to store.
type PutManifest struct {
	Reference string   // a tag, or the manifest's digest
	Tags      []string // further tags, moved in the same commit
	MediaType string   // as sent; may be empty if the body says it
	Body      []byte
	Reason    string // why, for people; kept erasable, its salted hash is logged
}

// A Receipt says what became of a push.
type Receipt struct {
	Descriptor ocispec.Descriptor
	Subject    digest.Digest // "" if the manifest has none
	Tags       []string      // that name the manifest now, of those asked for
	Version    int           // the model version it is; 0 if it is none
	LogIndex   int64         // of the push's leaf; -1 if nothing changed
}

// PutManifest stores a manifest in a repository and moves tags to it. When it
// returns, the manifest, its tags, what follows from it and its log leaf are
// durable: there is no later step that could fail on its own.
func (r *Registry) PutManifest(ctx context.Context, actor access.Actor, repo string, put PutManifest) (Receipt, error) {
	if err := checkName(repo); err != nil {
		return Receipt{}, err
	}
	if err := actor.Authorize(access.Push, repo); err != nil {
		return Receipt{}, err
	}
	tags := slices.Clone(put.Tags)
	alg := digest.Canonical
	want := digest.Digest("")
	if strings.Contains(put.Reference, ":") {
		want = digest.Digest(put.Reference)
		if err := checkDigest(want); err != nil {
			return Receipt{}, err
		}
		alg = want.Algorithm()
	} else {
		tags = append([]string{put.Reference}, tags...)
	}
	for _, t := range tags {
		if err := checkTag(t); err != nil {
			return Receipt{}, err
		}
	}
	m, err := parseManifest(put.MediaType, put.Body, alg)
	if err != nil {
		return Receipt{}, err
	}
	// After this line m cannot be malformed.
	if want != "" && want != m.digest {
		return Receipt{}, fmt.Errorf("%w: the manifest is %s, not %s", ErrDigestMismatch, m.digest, want)
	}
	if _, ok := attest.EnvironmentName(repo); ok && m.subject == "" && m.artifactType != attest.EnvironmentType {
		return Receipt{}, fmt.Errorf("%w: %s keeps environment documents (%s) only", ErrManifestInvalid, repo, attest.EnvironmentType)
	}

	r.leases.renew(repo, r.clock())
	row := manifestRow{MediaType: m.mediaType, Size: int64(len(m.body)), Body: m.body}
	if len(m.body) > inlineManifest {
		if row.Blob, err = r.writeBlob(ctx, m.body); err != nil {
			return Receipt{}, err
		}
		row.Body = nil
	}
	reason, reasonHash := hashReason(put.Reason)

	var receipt Receipt
	var stored bool       // whether row became the manifest's row
	var damaged store.Key // of bytes that these replace
	for {
		// Signatures are verified and documents read before the change, and
		// what that relied on is checked again inside it.
		var d derived
		var legacy map[string]derived
		if d, legacy, err = r.deriveAll(ctx, repo, m, tags); err != nil {
			break
		}
		err = r.submit(ctx, func(tx *txn) error {
			receipt = Receipt{
				Descriptor: ocispec.Descriptor{MediaType: m.mediaType, Digest: m.digest, Size: int64(len(m.body)), ArtifactType: m.artifactType},
				Subject:    m.subject, Tags: tags, LogIndex: -1,
			}
			stored = false
			p := &pushing{tx: tx, repo: repo, m: m, derived: d, legacy: legacy, event: Event{
				Kind: EventManifestPut, Actor: actor.ID, Request: actor.RequestID, Repository: repo,
				Digests: []digest.Digest{m.digest}, Artifact: m.artifactType,
			}}
			if m.subject != "" {
				p.event.Subjects = []digest.Digest{m.subject}
			}
			if err := p.manifest(row, &stored); err != nil {
				return err
			}
			if err := p.tags(tags); err != nil {
				return err
			}
			receipt.Version, damaged = p.version, p.damaged
			if !p.changed {
				return nil
			}
			if put.Reason != "" {
				p.event.ReasonHash = reasonHash
				tx.put(key("reason", number(tx.index)), reason)
			}
			receipt.LogIndex = tx.index
			tx.emit(p.event)
			return nil
		})
		if !errors.Is(err, errTrustMoved) {
			break
		}
	}
	if row.Blob != "" && (err != nil || !stored) {
		r.removeBlob(row.Blob)
	}
	if err == nil && damaged != "" {
		r.removeBlob(damaged)
	}
	if err == nil && receipt.LogIndex >= 0 && m.namesLarge() {
		r.wakeFollower()
	}
	return receipt, err
}

// pushing is one run of a push's change.
type pushing struct {
	tx      *txn
	repo    string
	m       *manifest
	derived derived
	legacy  map[string]derived // by tag; see [verify.LegacyTag]
	event   Event
	version int
	changed bool
	damaged store.Key
}

// manifest stores the manifest in the repository, if it is not there.
func (p *pushing) manifest(row manifestRow, stored *bool) error {
	tx, m := p.tx, p.m
	if err := p.derived.check(tx); err != nil {
		return err
	}
	held, err := exists(tx, key("held", p.repo, string(m.digest)))
	if err != nil {
		return err
	}
	// A manifest that was deleted and comes back is the version that it was.
	number, err := tx.Get(key("versionof", p.repo, string(m.digest)))
	if err == nil {
		p.version = int(lastNumber(append(make([]byte, 4), number...)))
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if held {
		return p.heal(row, stored)
	}
	p.changed = true
	missing := &MissingBlobs{}
	for _, d := range m.blobs {
		ok, err := exists(tx, key("linked", p.repo, string(d)))
		if err == nil && ok {
			ok, err = exists(tx, key("blob", string(d))) // not set aside as damaged
		}
		if err != nil {
			return err
		}
		if !ok {
			missing.Digests = append(missing.Digests, string(d))
		}
	}
	for _, d := range m.manifests {
		ok, err := exists(tx, key("held", p.repo, string(d)))
		if err != nil {
			return err
		}
		if !ok {
			missing.Digests = append(missing.Digests, string(d))
		}
	}
	if len(missing.Digests) > 0 {
		return missing
	}
	known, err := exists(tx, key("manifest", string(m.digest)))
	if err != nil {
		return err
	}
	if !known {
		tx.put(key("manifest", string(m.digest)), row)
		*stored = true
		if _, p.damaged, err = healed(tx, m.digest); err != nil {
			return err
		}
	}
	if known, err := exists(tx, key("repo", p.repo)); err != nil {
		return err
	} else if !known {
		tx.put(key("repo", p.repo), repoRow{Created: tx.now})
	}
	h := heldRow{
		MediaType: m.mediaType, ArtifactType: m.artifactType, Size: int64(len(m.body)),
		Subject: m.subject, Index: tx.index, At: tx.now,
	}
	for _, list := range [][]digest.Digest{m.blobs, m.manifests} {
		for _, d := range list {
			h.Uses = append(h.Uses, string(d))
			tx.set(key("uses", string(d), p.repo, string(m.digest)), nil)
		}
	}
	tx.put(key("held", p.repo, string(m.digest)), h)
	tx.set(key("holder", string(m.digest), p.repo), nil)
	if m.subject != "" {
		tx.put(key("referrer", p.repo, string(m.subject), newest(tx.index), string(m.digest)), m.referrerDescriptor())
	}
	p.event.Outcome = p.derived.write(tx, p.repo, m.digest)
	return nil
}

// deriveAll derives what the manifest says, and what it says through tags by
// which cosign before version 3 attached.
func (r *Registry) deriveAll(ctx context.Context, repo string, m *manifest, tags []string) (d derived, legacy map[string]derived, err error) {
	if m.subject == "" && !slices.ContainsFunc(tags, func(t string) bool { _, ok := verify.LegacyTag(t); return ok }) {
		return derived{}, nil, nil // a model says nothing about another
	}
	trust, index, err := r.trustInForce(ctx)
	if err != nil {
		return derived{}, nil, err
	}
	// It is being admitted now, so now is when it is known to exist.
	now := r.clock()
	if d, err = r.derive(ctx, repo, m, trust, now); err != nil {
		return derived{}, nil, err
	}
	d.trust = index
	for _, t := range tags {
		subject, ok := verify.LegacyTag(t)
		if !ok || subject == m.subject {
			continue
		}
		l, err := r.deriveLegacy(ctx, repo, m, subject, trust, now)
		if err != nil {
			return derived{}, nil, err
		}
		if legacy == nil {
			legacy = map[string]derived{}
		}
		l.trust = index
		legacy[t] = l
	}
	return d, legacy, nil
}

// heal puts the bytes of a manifest back that were set aside as damaged.
func (p *pushing) heal(row manifestRow, stored *bool) error {
	known, err := exists(p.tx, key("manifest", string(p.m.digest)))
	if err != nil || known {
		return err
	}
	p.changed, *stored = true, true
	p.tx.put(key("manifest", string(p.m.digest)), row)
	p.event.Kind = EventHeal
	_, p.damaged, err = healed(p.tx, p.m.digest)
	return err
}

// referrerDescriptor is how the manifest is listed under its subject.
func (m *manifest) referrerDescriptor() ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: m.mediaType, Digest: m.digest, Size: int64(len(m.body)), ArtifactType: m.artifactType}
	n := 0
	for k, v := range m.annotations {
		n += len(k) + len(v)
	}
	// "The descriptors MUST include annotations from the image manifest or
	// index" (distribution-spec, Listing Referrers); somebody who annotates
	// more than a list should carry has to be asked for the manifest.
	if n <= MaxAnnotations {
		d.Annotations = m.annotations
	}
	return d
}

// tags moves tags to the manifest, and makes it a version with its first one.
func (p *pushing) tags(tags []string) error {
	tx, m := p.tx, p.m
	for _, t := range tags {
		var now tagRow
		ok, err := load(tx, key("tag", p.repo, t), &now)
		if err != nil {
			return err
		}
		if ok && now.Digest == m.digest {
			continue
		}
		if ok && IsRelease(t) {
			return p.releaseTaken(t, now)
		}
		p.changed = true
		if l, ok := p.legacy[t]; ok {
			if err := l.check(tx); err != nil {
				return err
			}
			if o := l.write(tx, p.repo, m.digest); p.event.Outcome == "" {
				p.event.Outcome = o
			}
			// What the event speaks of first is what its outcome is about.
			if m.subject == "" {
				p.event.Subjects = append([]digest.Digest{l.subject}, p.event.Subjects...)
			} else {
				p.event.Subjects = append(p.event.Subjects, l.subject)
			}
		}
		if err := forgetLegacy(tx, p.repo, t, now.Digest); err != nil {
			return err
		}
		tx.put(key("tag", p.repo, t), tagRow{Digest: m.digest, Index: tx.index, At: tx.now})
		if now.Digest != "" {
			tx.delete(key("tagged", p.repo, string(now.Digest), t))
		}
		tx.set(key("tagged", p.repo, string(m.digest), t), nil)
		tx.put(key("tagmove", p.repo, t, number(tx.index)), tagMoveRow{From: now.Digest, To: m.digest, At: tx.now, Actor: p.event.Actor})
		p.event.Tags = append(p.event.Tags, TagChange{Tag: t, From: now.Digest, To: m.digest})
		if now.Digest != "" {
			p.event.Subjects = append(p.event.Subjects, now.Digest)
		}
		if p.version == 0 && !attachedRE.MatchString(t) {
			if err := p.born(t); err != nil {
				return err
			}
		}
	}
	return nil
}

// born gives the manifest the next version number of the repository, if it is
// a model: a manifest without a subject that is none of the documents about
// models. Numbers are dense and never used again.
func (p *pushing) born(tag string) error {
	tx, m := p.tx, p.m
	if _, env := attest.EnvironmentName(p.repo); env || m.subject != "" || attest.IsDocument(m.artifactType) {
		return nil
	}
	p.version = 1
	last := under("version", p.repo)
	last.Reverse, last.KeysOnly = true, true
	for row, err := range tx.Scan(last) {
		if err != nil {
			return err
		}
		p.version = int(lastNumber(append(make([]byte, 4), row.Key[len(row.Key)-4:]...))) + 1
		break
	}
	tx.put(key("version", p.repo, number32(p.version)), versionRow{Digest: m.digest, Tag: tag, Index: tx.index, At: tx.now})
	tx.set(key("versionof", p.repo, string(m.digest)), []byte(number32(p.version)))
	p.event.Version = p.version
	return nil
}

// releaseTaken is the error of a push of other content to a release tag.
func (p *pushing) releaseTaken(tag string, now tagRow) error {
	same := ""
	var row manifestRow
	if ok, err := load(p.tx, key("manifest", string(now.Digest)), &row); err != nil {
		return err
	} else if ok && row.Body != nil {
		if other, err := parseManifest(row.MediaType, row.Body, now.Digest.Algorithm()); err == nil && sameFiles(other, p.m) {
			same = ", with the same files as what was pushed"
		}
	}
	return fmt.Errorf("%w: %s:%s has named %s since %s%s; push under a new version",
		ErrTagImmutable, p.repo, tag, now.Digest, now.At.Format(time.RFC3339), same)
}

// sameFiles reports whether two manifests have the same set of file digests:
// the identity of the weights, whatever the packaging.
func sameFiles(a, b *manifest) bool {
	set := func(m *manifest) (s []digest.Digest) {
		for _, l := range m.layers {
			s = append(s, l.Digest)
		}
		slices.Sort(s)
		return slices.Compact(s)
	}
	return len(a.layers) > 0 && slices.Equal(set(a), set(b))
}

// DeleteTag removes a tag. A release tag cannot be removed.
func (r *Registry) DeleteTag(ctx context.Context, actor access.Actor, repo, tag string) error {
	if err := checkName(repo); err != nil {
		return err
	}
	if err := actor.Authorize(access.Delete, repo); err != nil {
		return err
	}
	if err := checkTag(tag); err != nil {
		return err
	}
	return r.submit(ctx, func(tx *txn) error {
		var now tagRow
		ok, err := load(tx, key("tag", repo, tag), &now)
		switch {
		case err != nil:
			return err
		case !ok:
			return fmt.Errorf("%w: %s has no tag %s", ErrManifestUnknown, repo, tag)
		case IsRelease(tag):
			return fmt.Errorf("%w: %s:%s names a release; withdraw it instead", ErrTagImmutable, repo, tag)
		}
		if err := dropTag(tx, repo, tag, now.Digest, actor.ID); err != nil {
			return err
		}
		tx.emit(Event{
			Kind: EventTagDelete, Actor: actor.ID, Request: actor.RequestID, Repository: repo,
			Subjects: []digest.Digest{now.Digest}, Tags: []TagChange{{Tag: tag, From: now.Digest}},
		})
		return nil
	})
}

func dropTag(tx *txn, repo, tag string, from digest.Digest, actor string) error {
	tx.delete(key("tag", repo, tag))
	tx.delete(key("tagged", repo, string(from), tag))
	tx.put(key("tagmove", repo, tag, number(tx.index)), tagMoveRow{From: from, At: tx.now, Actor: actor})
	return forgetLegacy(tx, repo, tag, from)
}

// forgetLegacy removes what followed from a manifest through a tag that does
// not name it any more.
func forgetLegacy(tx *txn, repo, tag string, from digest.Digest) error {
	subject, ok := verify.LegacyTag(tag)
	if !ok || from == "" {
		return nil
	}
	var held heldRow
	if _, err := load(tx, key("held", repo, string(from)), &held); err != nil || held.Subject == subject {
		return err
	}
	return forget(tx, repo, subject, from)
}

// DeleteManifest removes a manifest and its tags from a repository. One that
// is held (see [holds]) stays, and so does one that an index names.
func (r *Registry) DeleteManifest(ctx context.Context, actor access.Actor, repo string, d digest.Digest) error {
	if err := checkName(repo); err != nil {
		return err
	}
	if err := actor.Authorize(access.Delete, repo); err != nil {
		return err
	}
	if err := checkDigest(d); err != nil {
		return err
	}
	var garbage store.Key
	err := r.submit(ctx, func(tx *txn) error {
		garbage = ""
		var held heldRow
		ok, err := load(tx, key("held", repo, string(d)), &held)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%w: %s has no %s", ErrManifestUnknown, repo, d)
		}
		e := Event{
			Kind: EventManifestDelete, Actor: actor.ID, Request: actor.RequestID, Repository: repo,
			Digests: []digest.Digest{d}, Artifact: held.ArtifactType,
		}
		if held.Subject != "" {
			e.Subjects = []digest.Digest{held.Subject}
		}
		user, err := firstUser(tx, repo, d)
		if err != nil {
			return err
		}
		if user != "" {
			return fmt.Errorf("%w: the index %s names it", ErrManifestHeld, user)
		}
		why, err := heldBecause(tx, repo, d, map[digest.Digest]bool{})
		if err != nil {
			return err
		}
		if why != "" {
			return fmt.Errorf("%w: %s", ErrManifestHeld, why)
		}
		tagged := under("tagged", repo, string(d))
		tagged.KeysOnly = true
		for row, err := range tx.Scan(tagged) {
			if err != nil {
				return err
			}
			e.Tags = append(e.Tags, TagChange{Tag: parts(row.Key)[2], From: d})
		}
		for _, t := range e.Tags {
			if err := dropTag(tx, repo, t.Tag, d, actor.ID); err != nil {
				return err
			}
		}
		for _, u := range held.Uses {
			tx.delete(key("uses", u, repo, string(d)))
		}
		if held.Subject != "" {
			tx.delete(key("referrer", repo, string(held.Subject), newest(held.Index), string(d)))
		}
		tx.delete(key("held", repo, string(d)))
		tx.delete(key("holder", string(d), repo))
		if garbage, err = dropManifestBytes(tx, d); err != nil {
			return err
		}
		if err := forget(tx, repo, held.Subject, d); err != nil {
			return err
		}
		tx.emit(e)
		return nil
	})
	if err == nil && garbage != "" {
		r.removeBlob(garbage)
	}
	return err
}

// dropManifestBytes removes a manifest's bytes when no repository holds it
// any more, and returns the blob to remove after the commit, if there is one.
func dropManifestBytes(tx *txn, d digest.Digest) (garbage store.Key, err error) {
	for _, err := range tx.Scan(under("holder", string(d))) {
		return "", err // somebody else holds it
	}
	var row manifestRow
	if _, err := load(tx, key("manifest", string(d)), &row); err != nil {
		return "", err
	}
	tx.delete(key("manifest", string(d)))
	return row.Blob, nil
}
