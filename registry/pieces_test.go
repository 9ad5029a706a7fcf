package registry

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/verify/attest"
)

// pieces returns the lists that are published about a manifest.
func (h *house) pieces(repo string, subject digest.Digest) (lists []attest.Pieces) {
	h.t.Helper()
	refs, err := h.Referrers(h.t.Context(), me, repo, subject, attest.PiecesType)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, ref := range refs {
		m, err := h.Manifest(h.t.Context(), me, repo, string(ref.Digest))
		if err != nil {
			h.t.Fatal(err)
		}
		var manifest ocispec.Manifest
		if err := json.Unmarshal(m.Body, &manifest); err != nil {
			h.t.Fatal(err)
		}
		for _, l := range manifest.Layers {
			raw, err := h.readBlob(h.t.Context(), repo, l.Digest, attest.MaxDocument)
			if err != nil {
				h.t.Fatal(err)
			}
			var p attest.Pieces
			if err := attest.Unmarshal(raw, &p); err != nil {
				h.t.Fatal(err)
			}
			if err := p.Validate(); err != nil {
				h.t.Error(err)
			}
			if l.Annotations[attest.AnnotationBlob] != string(p.Blob) {
				h.t.Errorf("the list of %s is said to be of %s", p.Blob, l.Annotations[attest.AnnotationBlob])
			}
			lists = append(lists, p)
		}
	}
	return lists
}

func (h *house) follow() {
	h.t.Helper()
	if err := h.publishPieces(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// A large blob's list of pieces is published, however its upload went, and
// after a crash at any time; a small one has none.
func TestPiecesArePublished(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	h.follow() // from the beginning of the log on
	content := make([]byte, 2*attest.PieceSize+1234)
	rand.NewChaCha8([32]byte{4}).Read(content)
	const cut, back = attest.PieceSize + 99, attest.PieceSize - 7

	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		want := alg.FromBytes(content)
		u, err := h.StartUpload(ctx, me, "m", StartUpload{Algorithm: alg})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.AppendUpload(ctx, me, "m", u.ID, Chunk{At: 0, Body: bytes.NewReader(content[:cut]), Size: cut}); err != nil {
			t.Fatal(err)
		}
		h.crash() // the states of the first pieces are in rows
		if u, err := h.StatUpload(ctx, me, "m", u.ID); err != nil || u.Offset != cut {
			t.Fatalf("after a crash the upload stands at %d: %v", u.Offset, err)
		}
		// The client did not hear of the last bytes, and sends them again.
		if _, err := h.FinishUpload(ctx, me, "m", u.ID, Chunk{At: back, Rewind: true, Body: bytes.NewReader(content[back:]), Size: int64(len(content)) - back}, want); err != nil {
			t.Fatal(err)
		}
		small := h.blob("m", "small")
		manifest, err := json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "artifactType": "application/x-model", "config": small,
			"layers": []ocispec.Descriptor{{MediaType: "application/octet-stream", Digest: want, Size: int64(len(content))}, small},
		})
		if err != nil {
			t.Fatal(err)
		}
		r := h.put("m", "for-"+string(alg), manifest)
		if list := h.pieces("m", r.Descriptor.Digest); len(list) != 0 {
			t.Fatalf("%d lists before anybody followed", len(list))
		}
		h.crash()
		h.follow()
		lists := h.pieces("m", r.Descriptor.Digest)
		if len(lists) != 1 || lists[0].Blob != want || lists[0].Size != int64(len(content)) {
			t.Fatalf("%s: lists %v, not one of the large blob", alg, lists)
		}
		for i := range lists[0].Count() {
			offset, n := lists[0].Range(i)
			if ok, err := lists[0].Check(i, content[offset:offset+n]); !ok || err != nil {
				t.Errorf("%s: piece %d does not fit to its list: %v", alg, i, err)
			}
		}
		again := h.put("m", "for-"+string(alg), manifest)
		if again.Version != r.Version {
			t.Errorf("the version is %d and then %d", r.Version, again.Version)
		}
	}
	versions, err := h.Versions(ctx, me, "m")
	if err != nil || len(versions) != 2 {
		t.Errorf("%d versions of 2 models, %v", len(versions), err)
	}
	before, _ := h.state()
	h.crash()
	h.follow()
	if after, _ := h.state(); len(after) != len(before) {
		t.Errorf("following again makes %d rows of %d", len(after), len(before))
	}
	h.sound()

	// What belongs to the content goes with it, and what belonged to the
	// upload is gone already.
	for k := range before {
		if strings.HasPrefix(k, "uploadstates\x00") {
			t.Errorf("row %q of an upload that has ended", k)
		}
	}
	lone := h.blob("other", string(content[:attest.PieceSize+1]))
	if err := h.DeleteBlob(ctx, me, "other", lone.Digest); err != nil {
		t.Fatal(err)
	}
	u, err := h.StartUpload(ctx, me, "m", StartUpload{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AppendUpload(ctx, me, "m", u.ID, Chunk{At: 0, Body: bytes.NewReader(content), Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if err := h.CancelUpload(ctx, me, "m", u.ID); err != nil {
		t.Fatal(err)
	}
	after, _ := h.state()
	for k := range after {
		if strings.HasPrefix(k, "states\x00"+string(lone.Digest)) || strings.HasPrefix(k, "uploadstates\x00") {
			t.Errorf("row %q is left", k)
		}
	}
}
