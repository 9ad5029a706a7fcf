package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify/attest"
)

// stateGroup is how many states of a hash share a row.
const stateGroup = 256

// putStates writes the states of a blob's or an upload's hash, as far as they
// changed: those before from, in bytes, have rows already.
func putStates(tx *txn, family, owner string, states []byte, from int) {
	// One row is as long for either algorithm: what counts is that it is full.
	const row = stateGroup * 32
	for g := from / row; g*row < len(states); g++ {
		tx.set(key(family, owner, number32(g)), states[g*row:min(len(states), (g+1)*row)])
	}
}

// loadStates reads them. There may be more than belong to the content, of a
// session that went back.
func loadStates(rd store.Reader, family, owner string) (states []byte, err error) {
	for row, err := range rd.Scan(under(family, owner)) {
		if err != nil {
			return nil, err
		}
		states = append(states, row.Value...)
	}
	return states, nil
}

func dropStates(tx *txn, family, owner string) error {
	rg := under(family, owner)
	rg.KeysOnly = true
	for row, err := range tx.Scan(rg) {
		if err != nil {
			return err
		}
		tx.delete(append([]byte(nil), row.Key...))
	}
	return nil
}

// The lists of the pieces of large blobs are published by a follower: it reads
// the log, and adds to each manifest that names large blobs a referrer with
// the list of each of them (see [attest.Pieces]). That is a push like any
// other, by the system, with its own leaf; it comes shortly after the one it
// follows, and never delays it. The lists are nobody's claim about a model:
// they are unsigned, and a reader who has all pieces need not trust them.
//
// What is published depends on nothing but the manifest and its blobs, so
// publishing again after a crash changes nothing.

const piecesFollower = "pieces"

// cursorEvery is how many leaves of others a crash may make the follower read
// again.
const cursorEvery = 1000

// wakeFollower makes the follower look at the log now.
func (r *Registry) wakeFollower() {
	select {
	case r.published <- struct{}{}:
	default:
	}
}

// namesLarge reports whether a manifest names a blob of more than one piece.
func (m *manifest) namesLarge() bool {
	return slices.ContainsFunc(m.layers, func(l ocispec.Descriptor) bool { return l.Size > attest.PieceSize })
}

// follow publishes lists of pieces until ctx ends.
func (r *Registry) follow(ctx context.Context) {
	for {
		if err := r.publishPieces(ctx); err != nil && ctx.Err() == nil {
			r.log.Error("publishing the pieces of large blobs; it is tried again after the next push of one", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.published:
		}
	}
}

// publishPieces goes through the leaves that came since the last time.
func (r *Registry) publishPieces(ctx context.Context) error {
	var from int64
	saved, known := int64(-1), false
	err := r.view(ctx, func(rd store.Reader) (err error) {
		if known, err = load(rd, key("cursor", piecesFollower), &from); err != nil || known {
			return err
		}
		// A log that is older than this follower has no states to publish.
		var log logRow
		_, err = load(rd, key("log"), &log)
		from = log.Size
		return err
	})
	if err != nil {
		return err
	}
	if known {
		saved = from
	}
	for {
		events, next, err := r.pushesFrom(ctx, from)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := r.publishPiecesOf(ctx, e.Repository, e.Digests[0]); err != nil {
				return err
			}
		}
		if (len(events) > 0 && next > from) || next-saved >= cursorEvery || saved < 0 {
			saved = next
			if err := r.submit(ctx, func(tx *txn) error {
				tx.put(key("cursor", piecesFollower), saved)
				return nil
			}); err != nil {
				return err
			}
		}
		if next == from {
			return nil
		}
		from = next
	}
}

// pushesFrom returns the pushes of manifests among the leaves from an index
// on, and the index of the first leaf that was not read.
func (r *Registry) pushesFrom(ctx context.Context, from int64) (events []Event, next int64, err error) {
	next = from
	err = r.view(ctx, func(rd store.Reader) error {
		rg := under("leaf")
		rg.From = key("leaf", number(from))
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			if next-from == cursorEvery {
				return nil
			}
			next = lastNumber(row.Key) + 1
			// Most leaves are something else: they are not parsed for it.
			if !bytes.Contains(row.Value, []byte(EventManifestPut)) {
				continue
			}
			e, err := ParseLeaf(row.Value)
			if err != nil {
				return err
			}
			if e.Kind == EventManifestPut && e.Artifact != attest.PiecesType && len(e.Digests) > 0 {
				events = append(events, e)
			}
		}
		return nil
	})
	return events, next, err
}

// publishPiecesOf attaches to a manifest the lists of its large blobs, if it
// has any and it is still there.
func (r *Registry) publishPiecesOf(ctx context.Context, repo string, d digest.Digest) error {
	var subject ocispec.Descriptor
	var lists []attest.Pieces
	err := r.view(ctx, func(rd store.Reader) error {
		var held heldRow
		var row manifestRow
		if ok, err := load(rd, key("held", repo, string(d)), &held); err != nil || !ok {
			return err
		}
		if ok, err := load(rd, key("manifest", string(d)), &row); err != nil || !ok || row.Blob != "" {
			return err // one of 64 KiB and more names too many files to be worth it
		}
		m, err := parseManifest(row.MediaType, row.Body, d.Algorithm())
		if err != nil {
			return err
		}
		subject = ocispec.Descriptor{MediaType: row.MediaType, Digest: d, Size: row.Size}
		for _, l := range m.layers {
			if l.Size <= attest.PieceSize || !slices.Contains(m.blobs, l.Digest) {
				continue
			}
			var b blobRow
			if ok, err := load(rd, key("blob", string(l.Digest)), &b); err != nil {
				return err
			} else if !ok {
				continue
			}
			states, err := loadStates(rd, "states", string(l.Digest))
			if err != nil {
				return err
			}
			p, ok := attest.PiecesOf(l.Digest, b.Size, states)
			if ok && !slices.ContainsFunc(lists, func(other attest.Pieces) bool { return other.Blob == p.Blob }) {
				lists = append(lists, p)
			}
		}
		return nil
	})
	if err != nil || len(lists) == 0 {
		return err
	}
	config := ocispec.DescriptorEmptyJSON
	config.Data = nil
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: attest.PiecesType,
		Config: config, Subject: &subject,
	}
	if err := r.putBlob(ctx, repo, config.Digest, ocispec.DescriptorEmptyJSON.Data); err != nil {
		return err
	}
	for _, p := range lists {
		raw, err := attest.Marshal(p)
		if err != nil {
			return err
		}
		l := ocispec.Descriptor{
			MediaType: attest.PiecesDocumentType, Digest: digest.FromBytes(raw), Size: int64(len(raw)),
			Annotations: map[string]string{attest.AnnotationBlob: string(p.Blob)},
		}
		if err := r.putBlob(ctx, repo, l.Digest, raw); err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, l)
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	_, err = r.PutManifest(ctx, access.System(), repo, PutManifest{
		Reference: string(digest.FromBytes(body)), MediaType: manifest.MediaType, Body: body,
	})
	return err
}

// putBlob gives a repository a blob that the server makes itself.
func (r *Registry) putBlob(ctx context.Context, repo string, d digest.Digest, data []byte) error {
	k, err := r.writeBlob(ctx, data)
	if err != nil {
		return err
	}
	used, err := r.commitBlob(ctx, access.System(), repo, d, blobRow{Key: k, Size: int64(len(data))}, nil, "")
	if err == nil && !used {
		r.removeBlob(k)
	}
	return err
}
