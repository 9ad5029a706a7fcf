package registry

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

// scrubRows bounds how much one call of Scrub looks at, besides its bytes.
const scrubRows = 1000

// A Scrub says what one stretch of re-reading found.
type Scrub struct {
	Checked int   `json:"checked"` // blobs and manifests
	Bytes   int64 `json:"bytes"`

	// Damaged is content whose bytes do not have its digest any more. It was
	// set aside: readers are told that it is not there, and the next push of
	// the digest heals it.
	Damaged []digest.Digest `json:"damaged"`

	// Next is where to go on, "" at the end.
	Next string `json:"next"`
}

// Scrub reads stored content again, from a place on ("" is the beginning)
// until about budget bytes are read, compares it with its digests, and sets
// damaged content aside. A caller that calls it again and again with Next goes
// through everything, at the pace it likes.
func (r *Registry) Scrub(ctx context.Context, actor access.Actor, from string, budget int64) (Scrub, error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Scrub{}, err
	}
	s := Scrub{Damaged: []digest.Digest{}}
	family, last, _ := strings.Cut(from, "/")
	if from == "" {
		family = "blob"
	}
	if family != "blob" && family != "manifest" {
		return s, fmt.Errorf("%w: %.100q is no place to go on from; begin with none", ErrUnknown, from)
	}
	type item struct {
		d    digest.Digest
		blob store.Key
		size int64
		row  manifestRow
	}
	var items []item
	err := r.view(ctx, func(rd store.Reader) error {
		rg := under(family)
		if last != "" {
			rg.From = append(key(family, last), 0)
		}
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			if len(items) == scrubRows {
				break
			}
			it := item{d: digest.Digest(parts(row.Key)[0])}
			if family == "blob" {
				var b blobRow
				if err := decode(row, &b); err != nil {
					return err
				}
				it.blob, it.size = b.Key, b.Size
			} else {
				if err := decode(row, &it.row); err != nil {
					return err
				}
				it.blob, it.size = it.row.Blob, it.row.Size
			}
			items = append(items, it)
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	for i, it := range items {
		if i > 0 && s.Bytes+it.size > budget {
			s.Next = family + "/" + string(items[i-1].d)
			return s, nil
		}
		sound := false
		if it.blob == "" {
			sound = it.d.Validate() == nil && it.d.Algorithm().FromBytes(it.row.Body) == it.d
		} else if sound, err = r.sound(ctx, it.d, it.blob, it.size); err != nil {
			return s, err
		}
		s.Checked++
		s.Bytes += it.size
		if sound {
			continue
		}
		aside, err := r.quarantine(ctx, actor, it.d, it.blob)
		if err != nil {
			return s, err
		}
		if aside {
			r.log.Error("stored content does not have its digest any more; push it again", "digest", it.d, "bytes", it.size)
			s.Damaged = append(s.Damaged, it.d)
		}
	}
	switch {
	case len(items) == scrubRows:
		s.Next = family + "/" + string(items[len(items)-1].d)
	case family == "blob":
		s.Next = "manifest/"
	}
	return s, nil
}

// sound reads bytes and reports whether they have the digest and the size.
// Bytes that cannot be opened or read are not sound; the error is the
// context's, or that storage answers nothing at all.
func (r *Registry) sound(ctx context.Context, d digest.Digest, k store.Key, size int64) (bool, error) {
	if checkDigest(d) != nil {
		return false, nil
	}
	b, err := r.blobs.Open(ctx, k)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return false, r.storageDown()
	}
	defer b.Close()
	digester := d.Algorithm().Digester()
	n, err := io.CopyBuffer(digester.Hash(), struct{ io.Reader }{io.NewSectionReader(b, 0, size+1)}, make([]byte, uploadBuffer))
	if err != nil {
		return false, r.storageDown()
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return n == size && digester.Digest() == d, nil
}

// storageDown is the error of storage that answers nothing, so that one
// failure is not taken for damage of everything.
func (r *Registry) storageDown() error {
	if err := r.blobs.Ready(); err != nil && !isNoSpace(err) {
		return err
	}
	return nil
}

// quarantinedRow is content that was set aside because its bytes are damaged
// or gone.
type quarantinedRow struct {
	At       time.Time    `json:"at"`
	Key      store.Key    `json:"key,omitempty"`
	Manifest *manifestRow `json:"manifest,omitempty"`
}

// quarantine sets content aside: its row is removed, so that it is not there
// for readers, and a push of the digest brings new bytes. The damaged bytes
// stay, for whoever wants to know what happened, until then. It reports false
// if the content has other bytes by now.
func (r *Registry) quarantine(ctx context.Context, actor access.Actor, d digest.Digest, k store.Key) (aside bool, err error) {
	err = r.submit(ctx, func(tx *txn) error {
		aside = false
		q := quarantinedRow{At: tx.now, Key: k}
		var b blobRow
		var m manifestRow
		if ok, err := load(tx, key("blob", string(d)), &b); err != nil {
			return err
		} else if ok && k != "" && b.Key == k {
			aside = true
			tx.delete(key("blob", string(d)))
		} else if ok, err := load(tx, key("manifest", string(d)), &m); err != nil {
			return err
		} else if ok && m.Blob == k {
			aside = true
			q.Manifest = &m
			tx.delete(key("manifest", string(d)))
		}
		if !aside {
			return nil
		}
		tx.put(key("quarantined", string(d)), q)
		tx.emit(Event{Kind: EventQuarantine, Actor: actor.ID, Request: actor.RequestID, Digests: []digest.Digest{d}})
		return nil
	})
	return aside, err
}

// healed removes the mark of damage when new bytes of the content are
// committed, and returns the key of the damaged ones, if there are any.
func healed(tx *txn, d digest.Digest) (was bool, garbage store.Key, err error) {
	var q quarantinedRow
	if was, err = load(tx, key("quarantined", string(d)), &q); err != nil || !was {
		return false, "", err
	}
	tx.delete(key("quarantined", string(d)))
	return true, q.Key, nil
}
