package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

func (h *house) collect() Collection {
	h.t.Helper()
	would, err := h.Collect(h.t.Context(), me, true)
	if err != nil {
		h.t.Fatal(err)
	}
	did, err := h.Collect(h.t.Context(), me, false)
	if err != nil {
		h.t.Fatal(err)
	}
	if len(would.Blobs) != len(did.Blobs) || would.Uploads != did.Uploads || would.Unnamed < did.Unnamed || !slices.Equal(would.Missing, did.Missing) {
		h.t.Errorf("a dry run announced %+v, and then %+v was done", would, did)
	}
	return did
}

// A push of many files that lasts for days is never reaped, and neither is
// what it sent first; a day after its last sign of life it is.
func TestLeases(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	first := h.blob("a", "the first file")
	other := h.blob("other", "somebody's leftover")
	u, err := h.StartUpload(ctx, me, "a", StartUpload{})
	if err != nil {
		t.Fatal(err)
	}
	for hour := range 72 {
		h.advance(time.Hour)
		if _, err := h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: int64(hour), Body: strings.NewReader("x"), Size: 1}); err != nil {
			t.Fatalf("after %d hours: %v", hour, err)
		}
		got := h.collect()
		if gone := len(got.Blobs) == 1 && got.Blobs[0].Digest == other.Digest; gone != (hour == 24) {
			t.Errorf("after %d hours %+v was collected", hour+1, got)
		}
	}
	if _, err := h.StatBlob(ctx, me, "a", first.Digest); err != nil {
		t.Fatalf("the push goes on, and its first file: %v", err)
	}
	second, err := h.FinishUpload(ctx, me, "a", u.ID, Chunk{At: -1}, digest.FromString(strings.Repeat("x", 72)))
	if err != nil {
		t.Fatal(err)
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: first, Layers: []ocispec.Descriptor{second}}
	m.SchemaVersion = 2
	body, _ := json.Marshal(m)
	h.put("a", "big", body)
	h.advance(1000 * time.Hour)
	if got := h.collect(); len(got.Blobs) != 0 {
		t.Errorf("blobs of a manifest were collected: %+v", got)
	}

	// Somebody who may push asks: that is a sign of life, and writes nothing.
	lone := h.blob("a", "lone")
	h.advance(20 * time.Hour)
	rows, _ := h.state()
	if _, err := h.StatBlob(ctx, me, "a", lone.Digest); err != nil {
		t.Fatal(err)
	}
	if now, _ := h.state(); !mapsEqual(rows, now) {
		t.Error("asking for a blob wrote something")
	}
	h.advance(20 * time.Hour)
	if got := h.collect(); len(got.Blobs) != 0 {
		t.Errorf("what was asked for 20 hours ago was collected: %+v", got)
	}
	// A reader's question keeps nothing.
	reader := access.Actor{ID: "r", Grants: []access.Grant{{Role: access.Reader, Repositories: "**"}}}
	if _, err := h.StatBlob(ctx, reader, "a", lone.Digest); err != nil {
		t.Fatal(err)
	}
	h.advance(5 * time.Hour)
	if got := h.collect(); len(got.Blobs) != 1 || got.Blobs[0].Digest != lone.Digest || got.Freed != 4 {
		t.Errorf("a forgotten blob was not collected: %+v", got)
	}
	if _, err := h.StatBlob(ctx, me, "a", lone.Digest); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("a collected blob: %v", err)
	}
	// A server that has just started has seen no signs, and waits.
	h.blob("a", "before the restart")
	h.advance(30 * time.Hour)
	h.crash()
	h.advance(23 * time.Hour)
	if got := h.collect(); len(got.Blobs) != 0 {
		t.Errorf("collected 23 hours after the start: %+v", got)
	}
	h.advance(2 * time.Hour)
	if got := h.collect(); len(got.Blobs) != 1 {
		t.Errorf("not collected 25 hours after the start: %+v", got)
	}
	h.sound()
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// A blob in two repositories stays in the one where a manifest names it, and
// many are collected over several stretches of rows and several leaves.
func TestCollectTakesWhatNothingNames(t *testing.T) {
	h := newHouse(t)
	body := h.model("keeper", nil, "", "shared")
	h.put("keeper", "t", body)
	if err := h.MountBlob(t.Context(), me, "borrower", digest.FromString("shared"), "keeper"); err != nil {
		t.Fatal(err)
	}
	defer func(rows int) { collectRows = rows }(collectRows)
	collectRows = 7
	const many = collectBatch + 10
	for i := range many {
		h.blob("borrower", fmt.Sprint("orphan ", i))
	}
	keys := len(h.blobs.Keys())
	h.advance(25 * time.Hour)
	if _, err := h.Collect(t.Context(), access.Actor{ID: "p", Grants: []access.Grant{{Role: access.Pusher, Repositories: "**"}}}, false); !errors.Is(err, access.ErrDenied) {
		t.Errorf("a pusher collects: %v", err)
	}
	got := h.collect()
	if len(got.Blobs) != many+1 {
		t.Errorf("%d of %d blobs were collected", len(got.Blobs), many+1)
	}
	if left := len(h.blobs.Keys()); left != keys-many {
		t.Errorf("%d of %d blobs are left", left, keys)
	}
	if _, err := h.StatBlob(t.Context(), me, "keeper", digest.FromString("shared")); err != nil {
		t.Errorf("the manifest's own blob: %v", err)
	}
	leaves, err := h.LeavesAbout(t.Context(), me, digest.FromString("shared"))
	if err != nil || len(leaves) != 1 {
		t.Fatalf("leaves about the collected blob: %v, %v", leaves, err)
	}
	if l, err := h.Leaf(t.Context(), me, leaves[0]); err != nil || l.Event.Kind != EventBlobCollect || l.Event.Repository != "borrower" {
		t.Errorf("the leaf is %+v, %v", l.Event, err)
	}
	h.sound()
}

// While a collection has claimed a blob it is not there for those who would
// rely on it, and a sign of life before the claim wins over the collection.
func TestCollectionAndQuestion(t *testing.T) {
	h := newHouse(t)
	d := h.blob("a", "contested").Digest
	h.advance(25 * time.Hour)
	since := map[digest.Digest]time.Time{d: h.clock().Add(-25 * time.Hour)}
	if got := h.leases.claim("a", []digest.Digest{d}, since, h.clock()); len(got) != 1 {
		t.Fatal("an expired lease was not claimed")
	}
	if _, err := h.StatBlob(t.Context(), me, "a", d); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("a blob that is being collected: %v", err)
	}
	h.leases.release("a", []digest.Digest{d})
	if _, err := h.StatBlob(t.Context(), me, "a", d); err != nil {
		t.Errorf("after the claim: %v", err)
	}
	if got := h.leases.claim("a", []digest.Digest{d}, since, h.clock()); len(got) != 0 {
		t.Error("a lease that a question renewed was claimed")
	}
}

// Storage and rows are compared both ways.
func TestReconcile(t *testing.T) {
	h := newHouse(t)
	body := h.model("a", nil, "", "precious")
	h.put("a", "t", body)
	w, err := h.blobs.Create(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("left"))
	w.Sync()
	h.crash() // nobody knows of it any more
	if got := h.collect(); got.Unnamed != 0 {
		t.Errorf("young bytes were removed: %+v", got)
	}
	h.sound() // which is nothing to worry about
	h.advance(2 * time.Hour)
	if got := h.collect(); got.Unnamed != 1 || got.UnnamedBytes != 4 {
		t.Errorf("bytes that nothing names: %+v", got)
	}
	// And the other way: the bytes of a row are gone.
	d := digest.FromString("precious")
	var row blobRow
	if err := h.view(t.Context(), func(rd store.Reader) error { _, err := load(rd, key("blob", string(d)), &row); return err }); err != nil {
		t.Fatal(err)
	}
	if err := h.blobs.Remove(t.Context(), row.Key); err != nil {
		t.Fatal(err)
	}
	if got := h.collect(); len(got.Missing) != 1 || got.Missing[0] != d {
		t.Errorf("missing bytes: %+v", got)
	}
	h.heals(d, "precious", body)
}

// heals checks that damaged content is not there, that fsck says so, and that
// the next push of the same content by an ordinary client heals it.
func (h *house) heals(d digest.Digest, content string, body []byte) {
	t := h.t
	t.Helper()
	ctx := context.Background()
	if _, err := h.StatBlob(ctx, me, "a", d); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("damaged content is there: %v", err)
	}
	if report, err := h.Fsck(ctx); err != nil || len(report.Findings) == 0 {
		t.Errorf("fsck says nothing: %v", err)
	}
	// A manifest that names it is refused meanwhile.
	fresh := append(body, ' ')
	if _, err := h.PutManifest(ctx, me, "a", PutManifest{Reference: "fresh", Body: fresh}); !errors.Is(err, ErrManifestBlobUnknown) {
		t.Errorf("a manifest that names damaged content: %v", err)
	}
	h.blob("a", content)
	h.put("a", "fresh", fresh)
	b, err := h.OpenBlob(ctx, me, "a", d)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	h.sound()
}

// A flipped byte is found by re-reading, set aside, and healed by the next push.
func TestScrub(t *testing.T) {
	h := newHouse(t)
	body := h.model("a", nil, "", "precious")
	h.put("a", "t", body)
	big := h.model("a", nil, "", "more") // a manifest that is a blob
	var m map[string]any
	json.Unmarshal(big, &m)
	m["annotations"] = map[string]string{"filler": strings.Repeat("x", inlineManifest)}
	big, _ = json.Marshal(m)
	bigDigest := h.put("a", "big", big).Descriptor.Digest

	scrub := func() (damaged []digest.Digest, checked int) {
		for from := ""; ; {
			s, err := h.Scrub(t.Context(), me, from, 1) // one piece of content a call
			if err != nil {
				t.Fatal(err)
			}
			damaged, checked, from = append(damaged, s.Damaged...), checked+s.Checked, s.Next
			if from == "" {
				return damaged, checked
			}
		}
	}
	if damaged, checked := scrub(); len(damaged) != 0 || checked != 5 {
		t.Errorf("a sound store: %v of %d", damaged, checked)
	}
	keyOf := func(family string, d digest.Digest) store.Key {
		var b blobRow
		var m manifestRow
		h.view(t.Context(), func(rd store.Reader) error {
			if family == "blob" {
				_, err := load(rd, key(family, string(d)), &b)
				return err
			}
			_, err := load(rd, key(family, string(d)), &m)
			return err
		})
		return b.Key + m.Blob
	}
	d := digest.FromString("precious")
	h.blobs.Corrupt(keyOf("blob", d), 3)
	if damaged, _ := scrub(); len(damaged) != 1 || damaged[0] != d {
		t.Errorf("after a byte was flipped: %v", damaged)
	}
	h.heals(d, "precious", body)

	h.blobs.Corrupt(keyOf("manifest", bigDigest), 3)
	if damaged, _ := scrub(); len(damaged) != 1 || damaged[0] != bigDigest {
		t.Errorf("after a byte of a manifest was flipped: %v", damaged)
	}
	if _, err := h.StatManifest(t.Context(), me, "a", "big"); !errors.Is(err, ErrManifestUnknown) {
		t.Errorf("a damaged manifest is there: %v", err)
	}
	h.put("a", "big", big)
	if got, err := h.Manifest(t.Context(), me, "a", "big"); err != nil || string(got.Body) != string(big) {
		t.Errorf("the healed manifest: %v", err)
	}
	if damaged, checked := scrub(); len(damaged) != 0 || checked != 6 {
		t.Errorf("healed: %v of %d", damaged, checked)
	}
	h.sound()
	if _, err := h.Scrub(t.Context(), me, "nonsense", 1); !errors.Is(err, ErrUnknown) {
		t.Errorf("a place that is none: %v", err)
	}
	reader := access.Actor{ID: "r", Grants: []access.Grant{{Role: access.Auditor, Repositories: "**"}}}
	if _, err := h.Scrub(t.Context(), reader, "", 1); !errors.Is(err, access.ErrDenied) {
		t.Errorf("an auditor scrubs: %v", err)
	}
}

// What a release holds: itself, the parts of it, and what speaks of it, near
// or far.
func TestWhatAReleaseHolds(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	part := h.put("a", "part", h.model("a", nil, "", "weights")).Descriptor
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{part}}
	index.SchemaVersion = 2
	body, _ := json.Marshal(index)
	whole := h.put("a", "1.0.0", body).Descriptor
	aboutWhole := h.put("a", digest.FromBytes(h.model("a", &whole, "x/note", "n")).String(), h.model("a", &whole, "x/note", "n")).Descriptor
	aboutThat := h.put("a", "remark", h.model("a", &aboutWhole, "x/note", "nn")).Descriptor
	aboutPart := h.put("a", "remark2", h.model("a", &part, "x/note", "np")).Descriptor
	free := h.put("a", "free", h.model("a", nil, "", "free")).Descriptor
	aboutFree := h.put("a", "free-note", h.model("a", &free, "x/note", "nf")).Descriptor

	for name, d := range map[string]digest.Digest{
		"the release": whole.Digest, "a part of it": part.Digest, "a note on it": aboutWhole.Digest,
		"a note on the note": aboutThat.Digest, "a note on the part": aboutPart.Digest,
	} {
		err := h.DeleteManifest(ctx, me, "a", d)
		if !errors.Is(err, ErrManifestHeld) {
			t.Errorf("deleting %s: %v", name, err)
		}
	}
	for _, d := range []digest.Digest{aboutFree.Digest, free.Digest} {
		if err := h.DeleteManifest(ctx, me, "a", d); err != nil {
			t.Errorf("deleting what nothing holds: %v", err)
		}
	}
	if tags, _, err := h.Tags(ctx, me, "a", "", -1); err != nil || slices.Contains(tags, "free") {
		t.Errorf("tags %v, %v", tags, err)
	}
	h.sound()
}
