package registry

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
)

// Somebody pushes a blob and a manifest that names it, as clients do: the
// blob is sent only if it is not there. Somebody else deletes the same
// manifest, and a collection takes what nothing names, leases of earlier rounds
// being over. Whoever was told that a blob is there, or has sent it, can rely
// on it; and what is acknowledged can be read, unless it was deleted.
func TestPushAgainstDeleteAndCollect(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	const content, repo = "contested weights", "a"
	body := h.model(repo, nil, "", content)
	blob, manifest := digest.FromString(content), digest.FromBytes(body)
	rounds := 2_000
	if os.Getenv("ASSAY_SOAK") != "" {
		rounds = 10_000
	}
	push := func(tag string) error {
		if _, err := h.StatBlob(ctx, me, repo, blob); errors.Is(err, ErrBlobUnknown) {
			u, err := h.StartUpload(ctx, me, repo, StartUpload{})
			if err != nil {
				return err
			}
			if _, err := h.FinishUpload(ctx, me, repo, u.ID, Chunk{At: 0, Body: strings.NewReader(content), Size: int64(len(content))}, blob); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		// The configuration is shared by all, and pushed by all.
		if _, err := h.StatBlob(ctx, me, repo, digest.FromString("{}")); errors.Is(err, ErrBlobUnknown) {
			u, err := h.StartUpload(ctx, me, repo, StartUpload{})
			if err != nil {
				return err
			}
			if _, err := h.FinishUpload(ctx, me, repo, u.ID, Chunk{At: 0, Body: strings.NewReader("{}"), Size: 2}, digest.FromString("{}")); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		_, err := h.PutManifest(ctx, me, repo, PutManifest{Reference: tag, Body: body})
		return err
	}
	var pushed, deleted, collected int
	for round := range rounds {
		h.advance(25 * time.Hour)
		var all sync.WaitGroup
		var pushErr, deleteErr, collectErr error
		var did Collection
		all.Go(func() { pushErr = push("t") })
		all.Go(func() { deleteErr = h.DeleteManifest(ctx, me, repo, manifest) })
		all.Go(func() { did, collectErr = h.Collect(ctx, me, false) })
		all.Wait()
		if pushErr != nil {
			t.Fatalf("round %d: a push was refused: %v", round, pushErr)
		}
		if deleteErr != nil && !errors.Is(deleteErr, ErrManifestUnknown) {
			t.Fatalf("round %d: delete: %v", round, deleteErr)
		}
		if collectErr != nil || len(did.Missing) > 0 {
			t.Fatalf("round %d: collect: %+v, %v", round, did, collectErr)
		}
		pushed++
		if deleteErr == nil {
			deleted++
		}
		collected += len(did.Blobs)
		// The push was acknowledged: either it is there, or it was deleted after.
		_, err := h.StatManifest(ctx, me, repo, string(manifest))
		switch {
		case err == nil:
			b, err := h.OpenBlob(ctx, access.Actor{ID: "r", Grants: []access.Grant{{Role: access.Reader, Repositories: "**"}}}, repo, blob)
			if err != nil {
				t.Fatalf("round %d: the manifest is there, and its blob: %v", round, err)
			}
			got, err := io.ReadAll(b)
			b.Close()
			if err != nil || string(got) != content {
				t.Fatalf("round %d: the blob reads %q, %v", round, got, err)
			}
			if round%3 == 0 { // so that some rounds begin with nothing but the blob
				if err := h.DeleteManifest(ctx, me, repo, manifest); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
		case !errors.Is(err, ErrManifestUnknown) || deleteErr != nil:
			t.Fatalf("round %d: nobody deleted the manifest, and it reads: %v", round, err)
		}
	}
	t.Logf("%d pushes, %d deletions that found the manifest, %d blobs collected", pushed, deleted, collected)
	if deleted < rounds/20 || collected < rounds/20 {
		t.Errorf("they hardly met: %d deletions and %d collections in %d rounds", deleted, collected, rounds)
	}
	h.sound()
	h.crash()
	h.sound()
}
