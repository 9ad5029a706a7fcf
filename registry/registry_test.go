package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/registry/tlog"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// A house is a registry over the strict in-memory pair.
type house struct {
	*Registry
	t     testing.TB
	db    *store.MemDB
	blobs *store.MemBlobs
	id    *Identity
	now   time.Time
	mu    sync.Mutex
}

var me = access.Anonymous(true)

func newHouse(t testing.TB) *house {
	id, err := NewIdentity("log.example/test")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, db: store.NewMemDB(), blobs: store.NewMemBlobs(), id: id, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	h.blobs.SetClock(h.clock)
	h.open()
	t.Cleanup(func() { h.Close() })
	return h
}

func (h *house) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *house) advance(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

func (h *house) open() {
	h.t.Helper()
	r, err := Open(h.t.Context(), Options{DB: h.db, Blobs: h.blobs, Identity: h.id, Clock: h.clock})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Registry = r
}

// crash is a power cut: what was not durable is gone.
func (h *house) crash() {
	old := h.Registry
	h.db, h.blobs = h.db.Reopen(), h.blobs.Crash()
	h.open()
	old.Close()
}

func (h *house) sound() {
	h.t.Helper()
	report, err := h.Fsck(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range report.Findings {
		h.t.Errorf("fsck: %s: %s", f.Where, f.What)
	}
}

// state is everything that is stored.
func (h *house) state() (map[string]string, []store.Key) { return h.db.Rows(), h.blobs.Keys() }

func (h *house) blob(repo, data string) ocispec.Descriptor {
	h.t.Helper()
	u, err := h.StartUpload(h.t.Context(), me, repo, StartUpload{})
	if err != nil {
		h.t.Fatal(err)
	}
	d, err := h.FinishUpload(h.t.Context(), me, repo, u.ID, Chunk{At: 0, Body: strings.NewReader(data), Size: int64(len(data))}, digest.FromString(data))
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// model renders a manifest with one file for each content, and pushes those.
func (h *house) model(repo string, subject *ocispec.Descriptor, artifactType string, contents ...string) []byte {
	h.t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Config: ocispec.DescriptorEmptyJSON, Subject: subject}
	m.SchemaVersion = 2
	h.blob(repo, "{}")
	for i, c := range contents {
		l := h.blob(repo, c)
		l.MediaType = ocispec.MediaTypeImageLayer
		l.Annotations = map[string]string{ocispec.AnnotationTitle: fmt.Sprintf("file-%d", i)}
		m.Layers = append(m.Layers, l)
	}
	body, err := json.Marshal(m)
	if err != nil {
		h.t.Fatal(err)
	}
	return body
}

func (h *house) put(repo, reference string, body []byte, tags ...string) Receipt {
	h.t.Helper()
	r, err := h.PutManifest(h.t.Context(), me, repo, PutManifest{Reference: reference, Body: body, Tags: tags})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func TestPushAndPull(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	body := h.model("credit/scorer", nil, "application/x-model", "weights", "preprocess")
	r := h.put("credit/scorer", "1.4.0", body, "latest")
	if r.Version != 1 || !slices.Equal(r.Tags, []string{"1.4.0", "latest"}) {
		t.Errorf("receipt %+v", r)
	}
	for _, ref := range []string{"1.4.0", "latest", string(r.Descriptor.Digest)} {
		m, err := h.Manifest(ctx, me, "credit/scorer", ref)
		if err != nil || !bytes.Equal(m.Body, body) {
			t.Errorf("%s: %v, or other bytes than were pushed", ref, err)
		}
	}
	b, err := h.OpenBlob(ctx, me, "credit/scorer", digest.FromString("weights"))
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := io.ReadAll(b); string(data) != "weights" {
		t.Errorf("blob reads %q", data)
	}
	if _, err := h.OpenBlob(ctx, me, "other/repo", digest.FromString("weights")); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("a blob of another repository: %v", err)
	}
	again := h.put("credit/scorer", "1.4.0", body)
	if again.LogIndex != -1 || again.Version != 1 {
		t.Errorf("pushing the same again changed something: %+v", again)
	}
	v, err := h.Version(ctx, me, "credit/scorer", "1.4.0")
	if err != nil || v.Number != 1 || len(v.Files) != 2 || v.Files[0].Name != "file-0" {
		t.Errorf("version %+v, %v", v, err)
	}
	h.sound()
	h.crash()
	if _, err := h.Manifest(ctx, me, "credit/scorer", "1.4.0"); err != nil {
		t.Errorf("an acknowledged push is gone after a crash: %v", err)
	}
	h.sound()
}

func TestLargeManifestsAreBlobs(t *testing.T) {
	h := newHouse(t)
	m := map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{},
		"annotations": map[string]string{"padding": strings.Repeat("x", inlineManifest)},
	}
	body, _ := json.Marshal(m)
	r := h.put("a", "large", body)
	got, err := h.Manifest(t.Context(), me, "a", "large")
	if err != nil || !bytes.Equal(got.Body, body) {
		t.Errorf("%v, or other bytes", err)
	}
	h.sound()
	if err := h.DeleteManifest(t.Context(), me, "a", r.Descriptor.Digest); err != nil {
		t.Fatal(err)
	}
	if keys := h.blobs.Keys(); len(keys) != 0 {
		t.Errorf("its bytes are left: %v", keys)
	}
	h.sound()
}

// Whatever is refused leaves the set of all keys and of all blobs as it was.
func TestBadInputLeavesNothing(t *testing.T) {
	ctx := context.Background()
	good := `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"mediaType":"a/b","digest":"` + string(digest.FromString("{}")) + `","size":2},"layers":[]}`
	put := func(repo, ref, mediaType, body string) func(h *house) error {
		return func(h *house) error {
			_, err := h.PutManifest(ctx, me, repo, PutManifest{Reference: ref, MediaType: mediaType, Body: []byte(body)})
			return err
		}
	}
	upload := func(c Chunk, want digest.Digest) func(h *house) error {
		return func(h *house) error {
			u, err := h.StartUpload(ctx, me, "a", StartUpload{})
			if err != nil {
				return err
			}
			_, err = h.FinishUpload(ctx, me, "a", u.ID, c, want)
			if err != nil {
				h.CancelUpload(ctx, me, "a", u.ID)
			}
			return err
		}
	}
	many := strings.Repeat(`{"mediaType":"a/b","digest":"`+string(digest.FromString("{}"))+`","size":2},`, MaxDescriptors+1)
	for name, tc := range map[string]struct {
		do   func(h *house) error
		want error
	}{
		"wrong digest of a manifest": {put("a", string(digest.FromString("other")), "", good), ErrDigestMismatch},
		"manifest over the limit":    {put("a", "t", "", `{"x":"`+strings.Repeat("x", MaxManifest)+`"}`), ErrManifestTooLarge},
		"too many descriptors": {put("a", "t", "", `{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageManifest+
			`","config":{"mediaType":"a/b","digest":"`+string(digest.FromString("{}"))+`","size":2},"layers":[`+strings.TrimSuffix(many, ",")+`]}`), ErrManifestTooLarge},
		"tag that breaks the rules":    {put("a", "-t", "", good), ErrTagInvalid},
		"tag too long":                 {put("a", strings.Repeat("t", 129), "", good), ErrTagInvalid},
		"name that breaks the rules":   {put("A/B", "t", "", good), ErrNameInvalid},
		"name that climbs":             {put("a/../b", "t", "", good), ErrNameInvalid},
		"layers that are not there":    {put("a", "t", "", strings.Replace(good, string(digest.FromString("{}")), string(digest.FromString("gone")), 1)), ErrManifestBlobUnknown},
		"truncated body":               {put("a", "t", "", good[:len(good)-5]), ErrManifestInvalid},
		"duplicate keys":               {put("a", "t", "", strings.Replace(good, `"layers"`, `"schemaVersion":2,"layers"`, 1)), ErrManifestInvalid},
		"sent as another type":         {put("a", "t", ocispec.MediaTypeImageIndex, good), ErrManifestInvalid},
		"of no known type":             {put("a", "t", "", strings.Replace(good, ocispec.MediaTypeImageManifest, "text/plain", 1)), ErrManifestInvalid},
		"not JSON":                     {put("a", "t", ocispec.MediaTypeImageManifest, "hello"), ErrManifestInvalid},
		"a model among environments":   {put("env/prod", "t", "", good), ErrManifestInvalid},
		"wrong digest of a blob":       {upload(Chunk{Body: strings.NewReader("x"), Size: 1}, digest.FromString("y")), ErrDigestMismatch},
		"truncated blob":               {upload(Chunk{Body: strings.NewReader("x"), Size: 5}, digest.FromString("x")), ErrSizeInvalid},
		"connection that breaks":       {upload(Chunk{Body: iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("hello"))), Size: 5}, digest.FromString("hello")), ErrUploadInvalid},
		"piece that does not continue": {upload(Chunk{At: 7, Body: strings.NewReader("x"), Size: 1}, digest.FromString("x")), ErrRangeInvalid},
		"digest of no known algorithm": {upload(Chunk{Body: strings.NewReader("x"), Size: 1}, "md5:00"), ErrDigestInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.blob("a", "{}")
			rows, keys := h.state()
			err := tc.do(h)
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			gotRows, gotKeys := h.state()
			if !maps.Equal(rows, gotRows) || !slices.Equal(keys, gotKeys) {
				t.Errorf("something was left: %d rows and %d blobs before, %d and %d after", len(rows), len(keys), len(gotRows), len(gotKeys))
			}
		})
	}
}

func TestReleasesAreWrittenOnce(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	first := h.put("m", "v1.0.0", h.model("m", nil, "", "weights"))
	_, err := h.PutManifest(ctx, me, "m", PutManifest{Reference: "v1.0.0", Body: h.model("m", nil, "application/x-other", "weights")})
	if !errors.Is(err, ErrTagImmutable) || !strings.Contains(err.Error(), "same files") || !strings.Contains(err.Error(), string(first.Descriptor.Digest)) {
		t.Errorf("overwriting a release: %v", err)
	}
	if _, err := h.PutManifest(ctx, me, "m", PutManifest{Reference: "v1.0.0", Body: h.model("m", nil, "", "other weights")}); !errors.Is(err, ErrTagImmutable) || strings.Contains(err.Error(), "same files") {
		t.Errorf("overwriting a release with other files: %v", err)
	}
	if err := h.DeleteTag(ctx, me, "m", "v1.0.0"); !errors.Is(err, ErrTagImmutable) {
		t.Errorf("deleting a release tag: %v", err)
	}
	if err := h.DeleteManifest(ctx, me, "m", first.Descriptor.Digest); !errors.Is(err, ErrManifestHeld) {
		t.Errorf("deleting a release: %v", err)
	}
	// A moving tag moves, and the same digest gives no new version.
	second := h.put("m", "latest", h.model("m", nil, "", "newer weights"))
	h.put("m", "latest", h.model("m", nil, "", "weights"))
	third := h.put("m", "beta", h.model("m", nil, "", "newest weights"))
	if second.Version != 2 || third.Version != 3 {
		t.Errorf("versions %d and %d, want 2 and 3", second.Version, third.Version)
	}
	moves, err := h.TagHistory(ctx, me, "m", "latest")
	if err != nil || len(moves) != 2 || moves[1].From != second.Descriptor.Digest || moves[1].To != first.Descriptor.Digest {
		t.Errorf("history %+v, %v", moves, err)
	}
	for tag, release := range map[string]bool{"1.0.0": true, "v1.2.3-rc.1": true, "1.0": false, "latest": false, "1.0.0.0": false, "01.0.0": false, "1.0.0-": false} {
		if IsRelease(tag) != release {
			t.Errorf("IsRelease(%q) is %v", tag, !release)
		}
	}
	h.sound()
}

func TestWhatIsAVersion(t *testing.T) {
	h := newHouse(t)
	model := h.put("m", "1.0.0", h.model("m", nil, "", "w"))
	subject := model.Descriptor
	for what, r := range map[string]Receipt{
		"a referrer":           h.put("m", "sig", h.model("m", &subject, "application/x-anything", "s")),
		"a suite":              h.put("m", "suite", h.model("m", nil, attest.SuiteType, "s")),
		"the fallback's index": h.put("m", "sha256-"+strings.Repeat("a", 64), h.model("m", nil, "", "i")),
		"cosign's older tags":  h.put("m", "sha256-"+strings.Repeat("a", 64)+".sig", h.model("m", nil, "", "j")),
		"an environment":       h.put("env/prod", "current", h.model("env/prod", nil, attest.EnvironmentType, "e")),
	} {
		if r.Version != 0 {
			t.Errorf("%s became version %d", what, r.Version)
		}
	}
	by := h.put("m", string(digest.FromBytes(h.model("m", nil, "", "x"))), h.model("m", nil, "", "x"))
	if by.Version != 0 {
		t.Error("a push without a tag became a version")
	}
	h.sound()
}

func TestAsOf(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	one := h.put("m", "live", h.model("m", nil, "", "1"))
	h.advance(time.Hour)
	two := h.put("m", "live", h.model("m", nil, "", "2"))
	h.advance(time.Hour)
	if err := h.DeleteTag(ctx, me, "m", "live"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		asOf AsOf
		want digest.Digest
	}{
		{AsOf{Time: h.now.Add(-150 * time.Minute)}, ""},
		{AsOf{Time: h.now.Add(-90 * time.Minute)}, one.Descriptor.Digest},
		{AsOf{Time: h.now.Add(-30 * time.Minute)}, two.Descriptor.Digest},
		{AsOf{Index: one.LogIndex + 0}, ""}, // index 0 is the zero AsOf: now, and now it is gone
		{AsOf{Index: two.LogIndex}, two.Descriptor.Digest},
		{AsOf{}, ""},
	} {
		got, err := h.Resolve(ctx, me, "m", "live", tc.asOf)
		if got != tc.want || (tc.want == "") != errors.Is(err, ErrManifestUnknown) {
			t.Errorf("as of %+v: %s, %v; want %s", tc.asOf, got, err, tc.want)
		}
	}
}

// A manifest that was deleted and is pushed again is the version that it was.
func TestVersionsComeBack(t *testing.T) {
	h := newHouse(t)
	body := h.model("m", nil, "", "w")
	first := h.put("m", "main", body)
	second := h.put("m", "main", h.model("m", nil, "", "x"))
	if err := h.DeleteManifest(t.Context(), me, "m", first.Descriptor.Digest); err != nil {
		t.Fatal(err)
	}
	again := h.put("m", "main", body)
	if first.Version != 1 || second.Version != 2 || again.Version != 1 {
		t.Errorf("versions %d, %d and again %d; want 1, 2, 1", first.Version, second.Version, again.Version)
	}
	h.sound()
}

func TestReferrers(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	later := h.model("m", nil, "", "w")
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(later), Size: int64(len(later))}
	a := h.put("m", "ref-a", h.model("m", &subject, "application/x-a", "a")) // before its subject
	h.put("m", "1.0.0", later)
	b := h.put("m", "ref-b", h.model("m", &subject, "application/x-b", "b"))
	list, err := h.Referrers(ctx, me, "m", subject.Digest, "")
	if err != nil || len(list) != 2 || list[0].Digest != b.Descriptor.Digest || list[1].Digest != a.Descriptor.Digest {
		t.Errorf("referrers %+v, %v; want the newer first", list, err)
	}
	if list, _ := h.Referrers(ctx, me, "m", subject.Digest, "application/x-a"); len(list) != 1 || list[0].ArtifactType != "application/x-a" {
		t.Errorf("filtered: %+v", list)
	}
	if list, err := h.Referrers(ctx, me, "never/pushed", subject.Digest, ""); err != nil || len(list) != 0 {
		t.Errorf("an unknown repository: %+v, %v", list, err)
	}
	if err := h.DeleteManifest(ctx, me, "m", a.Descriptor.Digest); !errors.Is(err, ErrManifestHeld) {
		t.Errorf("deleting what speaks of a release: %v", err)
	}
	h.sound()
}

func TestUploadsGoOn(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	data := strings.Repeat("0123456789", 300_000)
	want := digest.FromString(data)
	u, err := h.StartUpload(ctx, me, "a", StartUpload{})
	if err != nil {
		t.Fatal(err)
	}
	// The connection breaks after some bytes: what came stays.
	broken := io.MultiReader(strings.NewReader(data[:1_500_000]), iotest.ErrReader(errors.New("reset by peer")))
	if _, err := h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: 0, Body: broken, Size: int64(len(data))}); err == nil {
		t.Fatal("a broken connection is no error")
	}
	u, err = h.StatUpload(ctx, me, "a", u.ID)
	if err != nil || u.Offset != 1_500_000 {
		t.Fatalf("offset %d, %v", u.Offset, err)
	}
	// The server is killed: what was acknowledged stays.
	h.crash()
	u, err = h.StatUpload(ctx, me, "a", u.ID)
	if err != nil || u.Offset != 1_500_000 {
		t.Fatalf("after a crash: offset %d, %v", u.Offset, err)
	}
	// A piece is sent again because its answer was lost.
	for range 2 {
		c := Chunk{At: 1_500_000, Rewind: true, Body: strings.NewReader(data[1_500_000:2_000_000]), Size: 500_000}
		if u, err = h.AppendUpload(ctx, me, "a", u.ID, c); err != nil || u.Offset != 2_000_000 {
			t.Fatalf("offset %d, %v", u.Offset, err)
		}
	}
	if _, err := h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: 5, Body: strings.NewReader("x"), Size: 1}); !errors.Is(err, ErrRangeInvalid) {
		t.Errorf("a piece out of order: %v", err)
	}
	d, err := h.FinishUpload(ctx, me, "a", u.ID, Chunk{At: 2_000_000, Body: strings.NewReader(data[2_000_000:]), Size: -1}, want)
	if err != nil || d.Size != int64(len(data)) {
		t.Fatalf("%+v, %v", d, err)
	}
	if _, err := h.StatUpload(ctx, me, "a", u.ID); !errors.Is(err, ErrUploadUnknown) {
		t.Errorf("a finished upload is still there: %v", err)
	}
	h.sound()
	h.crash()
	if _, err := h.StatBlob(ctx, me, "a", want); err != nil {
		t.Errorf("an acknowledged blob is gone after a crash: %v", err)
	}
	h.sound()
}

// A crash in the middle of a piece costs so many bytes, or what came in a moment.
func TestCrashWithinAPiece(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	u, err := h.StartUpload(ctx, me, "a", StartUpload{})
	if err != nil {
		t.Fatal(err)
	}
	row := func() bool { return h.db.Rows()[string(key("upload", u.ID))] != "" }
	const fast, more = checkpointEvery + 8*uploadBuffer, 4 * uploadBuffer
	zeros := func(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }
	body := io.MultiReader(
		zeros(fast),
		calling(func() {
			if row() {
				t.Error("an upload stood still for a sync while it was fast")
			}
			h.advance(checkpointAfter)
		}),
		zeros(more),
		calling(func() {
			if !row() {
				t.Error("nothing of a long piece is durable")
			}
			h.crash()
		}),
		iotest.ErrReader(errors.New("reset by peer")))
	if _, err := h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: 0, Body: body, Size: 1 << 40}); err == nil {
		t.Error("a broken connection is no error")
	}
	if u, err = h.StatUpload(ctx, me, "a", u.ID); err != nil || u.Offset < fast {
		t.Errorf("after the crash the upload stands at %d, %v", u.Offset, err)
	}
}

// The disk is full while pieces are on their way to it: what was written before
// stays, what comes after is not taken for it, and no buffer is lost.
func TestFullWithinAPiece(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	content := make([]byte, 9*uploadBuffer+5)
	rand.NewChaCha8([32]byte{}).Read(content)
	for _, after := range []int{1, uploadBuffer - 1, 4 * uploadBuffer, 7*uploadBuffer + 1} {
		u, err := h.StartUpload(ctx, me, "a", StartUpload{})
		if err != nil {
			t.Fatal(err)
		}
		body := io.MultiReader(
			bytes.NewReader(content[:after]), calling(func() { h.blobs.SetFull(true) }), bytes.NewReader(content[after:]))
		_, err = h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: 0, Body: body, Size: int64(len(content))})
		if !errors.Is(err, ErrNoSpace) {
			t.Errorf("full after %d bytes: %v", after, err)
		}
		h.blobs.SetFull(false)
		u, err = h.StatUpload(ctx, me, "a", u.ID)
		if err != nil || u.Offset > int64(after) {
			t.Fatalf("full after %d bytes: the upload stands at %d, %v", after, u.Offset, err)
		}
		rest := Chunk{At: u.Offset, Body: bytes.NewReader(content[u.Offset:]), Size: int64(len(content)) - u.Offset}
		if _, err := h.FinishUpload(ctx, me, "a", u.ID, rest, digest.FromBytes(content)); err != nil {
			t.Errorf("full after %d bytes, and going on from %d: %v", after, u.Offset, err)
		}
	}
	if b := &h.buffers; len(b.free) != b.made || b.made > maxFlights+1 {
		t.Errorf("of %d buffers %d came back; one upload needs %d", b.made, len(b.free), maxFlights+1)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// calling calls f when it is read, and is empty.
type calling func()

func (f calling) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// A client goes back to where a piece began, sends something else, and the
// server dies in the middle: what the row says is what the bytes are.
func TestCrashAfterGoingBack(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	u, err := h.StartUpload(ctx, me, "a", StartUpload{})
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := strings.Repeat("a", 100), strings.Repeat("b", 100), strings.Repeat("c", 2*uploadBuffer)
	for i, piece := range []string{a, b} {
		if _, err := h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: int64(100 * i), Body: strings.NewReader(piece), Size: 100}); err != nil {
			t.Fatal(err)
		}
	}
	body, send := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: 100, Rewind: true, Body: body, Size: int64(len(c))})
		done <- err
	}()
	io.WriteString(send, c[:uploadBuffer+1])
	for {
		if now, err := h.StatUpload(ctx, me, "a", u.ID); err != nil {
			t.Fatal(err)
		} else if now.Offset == 100+uploadBuffer {
			break
		}
		time.Sleep(time.Millisecond)
	}
	h.crash()
	send.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-done; err == nil {
		t.Error("a piece was acknowledged by a server that had died")
	}
	u, err = h.StatUpload(ctx, me, "a", u.ID)
	if err != nil || u.Offset != 100 {
		t.Fatalf("after the crash the upload stands at %d, %v", u.Offset, err)
	}
	if _, err := h.FinishUpload(ctx, me, "a", u.ID, Chunk{At: 100, Body: strings.NewReader(c), Size: -1}, digest.FromString(a+c)); err != nil {
		t.Error(err)
	}
	h.sound()
}

// Going back to where one of the last pieces began reads nothing again: the
// state of the hash is there. Shown by bytes that changed since, which are not
// seen.
func TestGoingBackReadsNothing(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	for _, crash := range []bool{false, true} {
		u, err := h.StartUpload(ctx, me, "a", StartUpload{})
		if err != nil {
			t.Fatal(err)
		}
		whole := strings.Repeat(fmt.Sprintf("%9v ", crash), 100)
		for at := 0; at < 1000; at += 100 {
			if _, err := h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: int64(at), Body: strings.NewReader(whole[at : at+100]), Size: 100}); err != nil {
				t.Fatal(err)
			}
		}
		if crash {
			h.crash()
		}
		var row uploadRow
		if err := json.Unmarshal([]byte(h.db.Rows()[string(key("upload", u.ID))]), &row); err != nil || len(row.Marks) != marksKept+1 {
			t.Fatalf("%d marks, %v", len(row.Marks), err)
		}
		h.blobs.Corrupt(row.Key, 5)
		for _, at := range []int64{900, 400} {
			if u, err = h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: at, Rewind: true, Body: strings.NewReader(whole[at:]), Size: 1000 - at}); err != nil || u.Offset != 1000 {
				t.Fatalf("offset %d, %v", u.Offset, err)
			}
		}
		if _, err := h.FinishUpload(ctx, me, "a", u.ID, Chunk{At: 1000}, digest.FromString(whole)); err != nil {
			t.Errorf("crash %v: %v", crash, err)
		}
	}
}

func TestSHA512(t *testing.T) {
	h := newHouse(t)
	for _, announced := range []digest.Algorithm{"", digest.SHA512} {
		for _, pieces := range []int{1, 2} {
			data := fmt.Sprintf("hello %s %d", announced, pieces)
			u, err := h.StartUpload(t.Context(), me, "a", StartUpload{Algorithm: announced})
			if err != nil {
				t.Fatal(err)
			}
			rest := data
			if pieces == 2 {
				if _, err := h.AppendUpload(t.Context(), me, "a", u.ID, Chunk{At: -1, Body: strings.NewReader(data[:3]), Size: 3}); err != nil {
					t.Fatal(err)
				}
				rest = data[3:]
			}
			want := digest.SHA512.FromString(data)
			if _, err := h.FinishUpload(t.Context(), me, "a", u.ID, Chunk{At: -1, Body: strings.NewReader(rest), Size: int64(len(rest))}, want); err != nil {
				t.Errorf("announced %q, %d pieces: %v", announced, pieces, err)
			}
		}
	}
	h.sound()
}

func TestAbandonedUploadsAreCollected(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	u, _ := h.StartUpload(ctx, me, "a", StartUpload{})
	if _, err := h.AppendUpload(ctx, me, "a", u.ID, Chunk{At: 0, Body: strings.NewReader("abc"), Size: 3}); err != nil {
		t.Fatal(err)
	}
	h.advance(23 * time.Hour)
	h.collect()
	if _, err := h.StatUpload(ctx, me, "a", u.ID); err != nil {
		t.Errorf("collected too early: %v", err)
	}
	h.advance(2 * time.Hour)
	h.collect()
	if _, err := h.StatUpload(ctx, me, "a", u.ID); !errors.Is(err, ErrUploadUnknown) {
		t.Errorf("an abandoned upload is still there: %v", err)
	}
	if keys := h.blobs.Keys(); len(keys) != 0 {
		t.Errorf("its bytes are left: %v", keys)
	}
}

// TestLargeDuplicates: bytes that are stored already go behind the back of who
// pushed them, but not behind that of who closes the registry.
func TestLargeDuplicates(t *testing.T) {
	h := newHouse(t)
	content := strings.Repeat("duplicate bytes ", attest.PieceSize/16+1)
	for i := range 6 {
		h.blob(fmt.Sprint("copy-", i), content)
	}
	h.Close()
	if keys := h.blobs.Keys(); len(keys) != 1 {
		t.Errorf("%d blobs are stored, not one: %v", len(keys), keys)
	}
}

func TestUploadTokens(t *testing.T) {
	h := newHouse(t)
	token := h.UploadToken("0123456789abcdef0123456789abcdef", 42)
	id, offset, err := h.ParseUploadToken(token)
	if err != nil || id != "0123456789abcdef0123456789abcdef" || offset != 42 {
		t.Errorf("%q parses as %q, %d, %v", token, id, offset, err)
	}
	for i := range token {
		bad := []byte(token)
		bad[i] ^= 1
		if _, _, err := h.ParseUploadToken(string(bad)); err == nil {
			t.Errorf("%q parses too", bad)
		}
	}
}

func TestMountAndDelete(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	d := h.blob("a", "shared").Digest
	stranger := access.Actor{ID: "u", Grants: []access.Grant{{Role: access.Pusher, Repositories: "b"}}}
	if err := h.MountBlob(ctx, stranger, "b", d, "a"); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("mounting from a repository that may not be read: %v", err)
	}
	if err := h.MountBlob(ctx, stranger, "b", d, ""); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("mounting from anywhere: %v", err)
	}
	if err := h.MountBlob(ctx, me, "b", d, "a"); err != nil {
		t.Fatal(err)
	}
	if err := h.MountBlob(ctx, me, "c", d, ""); err != nil {
		t.Fatal(err)
	}
	for i, repo := range []string{"a", "b", "c"} {
		if err := h.DeleteBlob(ctx, me, repo, d); err != nil {
			t.Fatal(err)
		}
		if left := len(h.blobs.Keys()); (left == 0) != (i == 2) {
			t.Errorf("%d blobs are left when %d repositories have it", left, 2-i)
		}
	}
	body := h.model("a", nil, "", "used")
	h.put("a", "t", body)
	if err := h.DeleteBlob(ctx, me, "a", digest.FromString("used")); !errors.Is(err, ErrBlobInUse) {
		t.Errorf("deleting a blob that a manifest names: %v", err)
	}
	h.sound()
}

func TestAuthorityIsAskedInside(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	d := h.put("a", "t", h.model("a", nil, "", "w")).Descriptor.Digest
	nobody := access.Actor{}
	reader := access.Actor{ID: "r", Grants: []access.Grant{{Role: access.Reader, Repositories: "**"}}}
	calls := map[string]struct {
		write bool
		call  func(a access.Actor) error
	}{
		"Manifest":     {false, func(a access.Actor) error { _, err := h.Manifest(ctx, a, "a", "t"); return err }},
		"StatManifest": {false, func(a access.Actor) error { _, err := h.StatManifest(ctx, a, "a", "t"); return err }},
		"Tags":         {false, func(a access.Actor) error { _, _, err := h.Tags(ctx, a, "a", "", -1); return err }},
		"Repositories": {false, func(a access.Actor) error { _, _, err := h.Repositories(ctx, a, "", -1); return err }},
		"Referrers":    {false, func(a access.Actor) error { _, err := h.Referrers(ctx, a, "a", d, ""); return err }},
		"StatBlob":     {false, func(a access.Actor) error { _, err := h.StatBlob(ctx, a, "a", digest.FromString("w")); return err }},
		"Versions":     {false, func(a access.Actor) error { _, err := h.Versions(ctx, a, "a"); return err }},
		"Lineage":      {false, func(a access.Actor) error { _, err := h.Lineage(ctx, a, "a", "t", false, 0); return err }},
		"Facts":        {false, func(a access.Actor) error { _, err := h.Facts(ctx, a, "a", d); return err }},
		"PutManifest": {true, func(a access.Actor) error {
			_, err := h.PutManifest(ctx, a, "a", PutManifest{Reference: "t"})
			return err
		}},
		"DeleteTag":      {true, func(a access.Actor) error { return h.DeleteTag(ctx, a, "a", "t") }},
		"DeleteManifest": {true, func(a access.Actor) error { return h.DeleteManifest(ctx, a, "a", d) }},
		"DeleteBlob":     {true, func(a access.Actor) error { return h.DeleteBlob(ctx, a, "a", d) }},
		"MountBlob":      {true, func(a access.Actor) error { return h.MountBlob(ctx, a, "a", d, "") }},
		"StartUpload":    {true, func(a access.Actor) error { _, err := h.StartUpload(ctx, a, "a", StartUpload{}); return err }},
		"StatUpload":     {true, func(a access.Actor) error { _, err := h.StatUpload(ctx, a, "a", "x"); return err }},
		"Checkpoint":     {true, func(a access.Actor) error { _, err := h.Checkpoint(ctx, a); return err }},
		"Leaf":           {true, func(a access.Actor) error { _, err := h.Leaf(ctx, a, 0); return err }},
		"LeavesAbout":    {true, func(a access.Actor) error { _, err := h.LeavesAbout(ctx, a, d); return err }},
		"InclusionProof": {true, func(a access.Actor) error { _, err := h.InclusionProof(ctx, a, 0); return err }},
		"Tile":           {true, func(a access.Actor) error { _, err := h.Tile(ctx, a, tlog.TilePath{}); return err }},
		"Trust":          {true, func(a access.Actor) error { _, err := h.Trust(ctx, a); return err }},
		"SetTrust": {true, func(a access.Actor) error {
			_, err := h.SetTrust(ctx, a, []byte("version: 1\nidentities: []\n"))
			return err
		}},
		"SetPolicy": {true, func(a access.Actor) error {
			_, err := h.SetPolicy(ctx, a, []byte("version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\n"))
			return err
		}},
		"Decide": {true, func(a access.Actor) error { _, err := h.Decide(ctx, a, "a", "t", "prod"); return err }},
	}
	for name, c := range calls {
		if err := c.call(nobody); !errors.Is(err, access.ErrUnauthenticated) {
			t.Errorf("%s by nobody: %v", name, err)
		}
		if err := c.call(reader); c.write != errors.Is(err, access.ErrDenied) {
			t.Errorf("%s by a reader: %v", name, err)
		}
	}
}

func TestTheLogProvesIt(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	var receipts []Receipt
	for i := range 20 {
		receipts = append(receipts, h.put("m", fmt.Sprintf("1.0.%d", i), h.model("m", nil, "", fmt.Sprint(i))))
	}
	for _, r := range receipts {
		raw, err := h.InclusionProof(ctx, me, r.LogIndex)
		if err != nil {
			t.Fatal(err)
		}
		p, err := tlog.Verify(raw, h.LogKey())
		if err != nil {
			t.Fatal(err)
		}
		e, err := ParseLeaf(p.Leaf)
		if err != nil || e.Kind != EventManifestPut || e.Digests[0] != r.Descriptor.Digest || e.Version != r.Version {
			t.Errorf("leaf %+v, %v", e, err)
		}
		about, err := h.LeavesAbout(ctx, me, r.Descriptor.Digest)
		if err != nil || !slices.Contains(about, r.LogIndex) {
			t.Errorf("leaves about %s: %v, %v", r.Descriptor.Digest, about, err)
		}
	}
	bundle, err := h.Tile(ctx, me, tlog.TilePath{Entries: true, Width: 20})
	if err != nil {
		t.Fatal(err)
	}
	note, err := h.Checkpoint(ctx, me)
	if err != nil {
		t.Fatal(err)
	}
	want, err := tlog.OpenCheckpoint(note, h.LogKey())
	if err != nil {
		t.Fatal(err)
	}
	// Whoever reads the tiles comes to the root that was signed; with any one
	// byte of them changed, to another one.
	hashes, err := h.Tile(ctx, me, tlog.TilePath{Width: 20})
	if err != nil {
		t.Fatal(err)
	}
	if root, ok := rootOf(bundle, hashes); !ok || root != want.Hash {
		t.Errorf("the tiles come to %v, the checkpoint says %v", root, want.Hash)
	}
	for _, tile := range [][]byte{bundle, hashes} {
		for i := range tile {
			tile[i] ^= 1
			if root, ok := rootOf(bundle, hashes); ok && root == want.Hash {
				t.Errorf("byte %d of a tile was changed, and nobody can tell", i)
			}
			tile[i] ^= 1
		}
	}
}

// rootOf reads a log of less than 256 leaves from its entries and their
// hashes; ok is false if those disagree.
func rootOf(entries, tile []byte) (root tlog.Hash, ok bool) {
	leaves, err := tlog.Entries(entries)
	if err != nil || len(leaves)*32 != len(tile) {
		return root, false
	}
	var stored []tlog.Hash
	r := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for i, l := range leaves {
		if h := tlog.LeafHash(l); !bytes.Equal(h[:], tile[i*32:i*32+32]) {
			return root, false
		}
		_, hs, err := tlog.StoredHashes(int64(i), l, r)
		if err != nil {
			return root, false
		}
		stored = append(stored, hs...)
	}
	root, err = tlog.TreeHash(int64(len(leaves)), r)
	return root, err == nil
}

// A change of the record without an event, an event without a change, and a
// key of no family never get in.
func TestTheSequencerRefuses(t *testing.T) {
	h := newHouse(t)
	rows, _ := h.state()
	for name, c := range map[string]change{
		"a record without an event": func(tx *txn) error { tx.put(key("repo", "a"), repoRow{}); return nil },
		"an event without a record": func(tx *txn) error { tx.emit(Event{Kind: "x"}); return nil },
		"a key of no family":        func(tx *txn) error { tx.set([]byte("what\x00"), nil); return nil },
		"a key of the sequencer's":  func(tx *txn) error { tx.set(key("leaf", number(0)), nil); return nil },
	} {
		if err := h.submit(t.Context(), c); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if now, _ := h.state(); !maps.Equal(rows, now) {
		t.Error("something was written")
	}
}

// Many writers, some of which fail: each is told its own outcome, the others
// are not touched by it, and they share commits.
func TestTheSequencerGroups(t *testing.T) {
	h := newHouse(t)
	const writers = 200
	errOdd := errors.New("odd")
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			err := h.submit(t.Context(), func(tx *txn) error {
				if i%2 == 1 {
					tx.put(key("repo", fmt.Sprint(i)), repoRow{})
					return errOdd
				}
				n := 0
				for _, err := range tx.Scan(under("repo")) {
					if err != nil {
						return err
					}
					n++
				}
				// Each sees those before it, in the same commit or not: the
				// log index and the number of rows march together.
				if int64(n) != tx.index {
					return fmt.Errorf("%d rows at log index %d", n, tx.index)
				}
				tx.put(key("repo", fmt.Sprintf("r%03d", i)), repoRow{Created: tx.now})
				tx.emit(Event{Kind: "test", Actor: "t"})
				return nil
			})
			if want := error(nil); i%2 == 1 && !errors.Is(err, errOdd) || i%2 == 0 && err != want {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	repos, _, err := h.Repositories(t.Context(), me, "", -1)
	if err != nil || len(repos) != writers/2 {
		t.Errorf("%d of %d rows, %v", len(repos), writers/2, err)
	}
	t.Logf("%d changes in %d commits", writers/2, h.db.Updates())
	h.sound()
}

func TestFailedCommits(t *testing.T) {
	for _, fault := range []store.Fault{store.FailLost, store.FailPersist} {
		h := newHouse(t)
		body := h.model("a", nil, "", "w")
		h.db.Inject(fault)
		if _, err := h.PutManifest(t.Context(), me, "a", PutManifest{Reference: "t", Body: body}); err == nil {
			t.Errorf("fault %d: the push was acknowledged", fault)
		}
		if err := h.Ready(t.Context()); !errors.Is(err, store.ErrPoisoned) {
			t.Errorf("fault %d: ready: %v", fault, err)
		}
		h.crash()
		_, err := h.Manifest(t.Context(), me, "a", "t")
		if persisted := err == nil; persisted != (fault == store.FailPersist) {
			t.Errorf("fault %d: after a restart: %v", fault, err)
		}
		h.sound()
	}
}

func TestFullDisk(t *testing.T) {
	h := newHouse(t)
	body := h.model("a", nil, "", "w")
	rows, keys := h.state()
	h.blobs.SetFull(true)
	if _, err := h.StartUpload(t.Context(), me, "a", StartUpload{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("StartUpload: %v", err)
	}
	h.db.Inject(store.FailNoSpace)
	if _, err := h.PutManifest(t.Context(), me, "a", PutManifest{Reference: "t", Body: body}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("PutManifest: %v", err)
	}
	if err := h.Ready(t.Context()); !errors.Is(err, ErrNoSpace) {
		t.Errorf("ready: %v", err)
	}
	// The disk fills up between the bytes of a blob and its row.
	h.blobs.SetFull(false)
	u, err := h.StartUpload(t.Context(), me, "a", StartUpload{})
	if err != nil {
		t.Fatal(err)
	}
	h.db.Inject(store.FailNoSpace)
	if _, err := h.FinishUpload(t.Context(), me, "a", u.ID, Chunk{Body: strings.NewReader("late"), Size: 4}, digest.FromString("late")); !errors.Is(err, ErrNoSpace) {
		t.Errorf("FinishUpload: %v", err)
	}
	h.blobs.SetFull(true)
	gotRows, gotKeys := h.state()
	if !maps.Equal(rows, gotRows) || !slices.Equal(keys, gotKeys) {
		t.Error("something was left")
	}
	h.blobs.SetFull(false)
	h.put("a", "t", body)
	h.sound()
}

func TestUnknownSchema(t *testing.T) {
	h := newHouse(t)
	h.Close()
	h.db.SetRow(string(key("schema")), []byte("99"))
	_, err := Open(t.Context(), Options{DB: h.db, Blobs: h.blobs, Identity: h.id})
	if err == nil || !strings.Contains(err.Error(), "99") {
		t.Errorf("schema 99: %v", err)
	}
	h.db.SetRow(string(key("schema")), []byte(strconv.Itoa(schemaVersion)))
	h.open()
}

// Remove or damage any one row, or change any one byte of a blob: fsck names it.
func TestFsckFindsEverything(t *testing.T) {
	h := newHouse(t)
	h.populate()
	grants := []access.Grant{{Role: access.Reader, Repositories: "**"}}
	for _, name := range []string{"kept", "revoked"} {
		token, _, err := h.CreateToken(t.Context(), me, name, grants, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if name == "revoked" {
			if _, err := h.RevokeToken(t.Context(), me, token.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.sound()
	// What may be lost without a trace: operational rows that nothing else
	// speaks of, and the erasable text of reasons.
	harmless := map[string]bool{"reason": true, "schema": true, "allowed": true}
	families := map[string]bool{}
	for k, v := range h.db.Rows() {
		family := familyOf([]byte(k))
		families[family] = true
		if harmless[family] {
			continue
		}
		for what, value := range map[string][]byte{"removed": nil, "damaged": []byte("{")} {
			if v == "" && value != nil {
				continue // nothing in it to damage
			}
			h.db.SetRow(k, value)
			report, err := h.Fsck(t.Context())
			if err != nil || len(report.Findings) == 0 {
				t.Errorf("row %q was %s and fsck found nothing (%v)", k, what, err)
			}
			h.db.SetRow(k, []byte(v))
		}
	}
	for _, want := range []string{"held", "holder", "tag", "tagged", "tagmove", "version", "versionof", "referrer", "uses", "fact", "edge", "deployed", "document", "decision", "token", "blob", "linked", "linkedin", "leaf", "hash", "about", "log"} {
		if !families[want] {
			t.Errorf("the test has no row of family %s", want)
		}
	}
	for _, k := range h.blobs.Keys() {
		h.blobs.Corrupt(k, 0)
		if report, err := h.Fsck(t.Context()); err != nil || len(report.Findings) == 0 {
			t.Errorf("blob %s was damaged and fsck found nothing (%v)", k, err)
		}
		h.blobs.Corrupt(k, 0)
	}
	h.sound()
}

// keys and a trust file with one key for each role.
func (h *house) trustKeys() map[verify.Role]*verify.Key {
	h.t.Helper()
	keys := map[verify.Role]*verify.Key{}
	yaml := "version: 1\nidentities:\n"
	for _, role := range verify.Roles {
		k, err := verify.GenerateKey()
		if err != nil {
			h.t.Fatal(err)
		}
		keys[role] = k
		yaml += fmt.Sprintf("- id: %s-team\n  roles: [%s]\n  repositories: ['**']\n  publicKey: |\n    %s\n", role, role,
			strings.ReplaceAll(strings.TrimSpace(string(k.PublicPEM())), "\n", "\n    "))
	}
	if _, err := h.SetTrust(h.t.Context(), me, []byte(yaml)); err != nil {
		h.t.Fatal(err)
	}
	return keys
}

// state attaches a signed statement to a subject.
func (h *house) attach(repo string, subject ocispec.Descriptor, k *verify.Key, p attest.Predicate) Receipt {
	h.t.Helper()
	s, err := attest.NewStatement(subject.Digest, p)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.attachStatement(repo, subject, k, s, p.PredicateType())
}

func (h *house) attachStatement(repo string, subject ocispec.Descriptor, k *verify.Key, statement []byte, predicateType string) Receipt {
	h.t.Helper()
	b, err := verify.SignStatement(h.t.Context(), k, statement)
	if err != nil {
		h.t.Fatal(err)
	}
	ref, err := verify.AttachBundle(subject, b, predicateType, h.clock())
	if err != nil {
		h.t.Fatal(err)
	}
	h.blob(repo, "{}")
	h.blob(repo, string(ref.Signed))
	return h.put(repo, string(ref.Descriptor.Digest), ref.Manifest)
}

func (h *house) release(repo string, subject ocispec.Descriptor, k *verify.Key) Receipt {
	s, err := attest.Marshal(attest.Statement{
		Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(subject.Digest)}},
		PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}"),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return h.attachStatement(repo, subject, k, s, attest.PredicateSignature)
}

func (h *house) environment(name, url string) Receipt {
	h.t.Helper()
	raw, err := attest.Marshal(attest.Environment{
		Name: name, Target: attest.Target{Protocol: "oip-v2-rest", URL: url, Model: "m"}, RecordedAt: h.clock(),
		Fingerprint: map[string]attest.FingerprintField{},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	repo := attest.EnvironmentRepository(name)
	return h.put(repo, "current", h.model(repo, nil, attest.EnvironmentType, string(raw)))
}

func lineage(parent digest.Digest, dataset string, at time.Time) attest.Lineage {
	l := attest.Lineage{
		Parents: []attest.Parent{}, Code: []attest.Code{{Relation: attest.BuiltFrom, Revision: "abc", Resource: attest.Resource{URI: "git+https://example.com/train"}}},
		Datasets:   []attest.Dataset{{Relation: attest.TrainedOn, How: "sha256 of the file", Resource: attest.Resource{Name: "train.csv", Digest: attest.Digests(digest.FromString(dataset))}}},
		RecordedAt: at,
	}
	if parent != "" {
		l.Parents = append(l.Parents, attest.Parent{Relation: attest.RevisionOf, Resource: attest.Resource{Digest: attest.Digests(parent)}})
	}
	return l
}

func certificate(environment digest.Digest, name string, at time.Time) attest.Certificate {
	some := attest.ResourceOf("", digest.FromString("x"))
	return attest.Certificate{
		CertificateID: "urn:uuid:1", Verdict: attest.Certified, IssuedAt: at,
		Validity: attest.Validity{NotBefore: at, NotAfter: at.Add(90 * 24 * time.Hour)},
		Finding: attest.Finding{
			Claim: "at most 1 % of decisions flip", EnvironmentName: name, Environment: attest.ResourceOf("", environment),
			Suite: some, Criteria: some, Plan: some, Replay: some, Cases: 299,
			Metrics: []attest.Metric{{Name: "flips", Comparator: "<=", Threshold: "0", Value: "0", SampleSize: 299, Passed: true}},
		},
	}
}

// populate makes a registry in which every family has rows.
func (h *house) populate() (model, parent Receipt, keys map[verify.Role]*verify.Key) {
	h.t.Helper()
	keys = h.trustKeys()
	parent = h.put("credit/scorer", "1.3.0", h.model("credit/scorer", nil, "", "old weights"))
	model = h.put("credit/scorer", "1.4.0", h.model("credit/scorer", nil, "", "weights"), "latest")
	h.release("credit/scorer", model.Descriptor, keys[verify.Release])
	h.attach("credit/scorer", model.Descriptor, keys[verify.Provenance], lineage(parent.Descriptor.Digest, "data", h.clock()))
	env := h.environment("prod-eu", "http://one")
	h.attach("credit/scorer", model.Descriptor, keys[verify.Conformance], certificate(env.Descriptor.Digest, "prod-eu", h.clock()))
	h.advance(time.Minute)
	h.attach("credit/scorer", model.Descriptor, keys[verify.Deployment], attest.Deployment{
		EnvironmentName: "prod-eu", Environment: attest.ResourceOf("", env.Descriptor.Digest), Basis: "observed", StatedBy: "pipeline", From: h.clock(),
	})
	if rec, err := h.Decide(h.t.Context(), me, "credit/scorer", "1.4.0", "prod-eu"); err != nil || !rec.Allow {
		h.t.Fatalf("decision %+v, %v", rec.Decision, err)
	}
	return model, parent, keys
}

func TestDeploymentsAndLineage(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	model, parent, keys := h.populate()
	deployedAt := h.clock()
	h.advance(time.Hour)
	env, err := h.Environment(ctx, me, "prod-eu", AsOf{})
	if err != nil {
		t.Fatal(err)
	}
	h.attach("credit/scorer", parent.Descriptor, keys[verify.Deployment], attest.Deployment{
		EnvironmentName: "prod-eu", Environment: attest.ResourceOf("", env.Digest), Basis: "declared", StatedBy: "pipeline", From: h.clock(),
	})
	// The key of another role may say what it likes.
	h.attach("credit/scorer", model.Descriptor, keys[verify.Release], attest.Deployment{
		EnvironmentName: "prod-eu", Environment: attest.ResourceOf("", env.Digest), Basis: "declared", StatedBy: "intruder", From: h.clock().Add(time.Second),
	})
	h.advance(time.Hour)
	ran := func(at time.Time, known AsOf) digest.Digest {
		t.Helper()
		list, err := h.Deployments(ctx, me, "prod-eu", at, known)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			return ""
		}
		return list[0].Model
	}
	if got := ran(deployedAt.Add(-time.Second), AsOf{}); got != "" {
		t.Errorf("before the first deployment %s ran", got)
	}
	if got := ran(deployedAt, AsOf{}); got != model.Descriptor.Digest {
		t.Errorf("at the first deployment %s ran", got)
	}
	if got := ran(time.Time{}, AsOf{}); got != parent.Descriptor.Digest {
		t.Errorf("now %s runs", got)
	}
	if got := ran(time.Time{}, AsOf{Time: deployedAt}); got != model.Descriptor.Digest {
		t.Errorf("as was known at the first deployment, %s runs", got)
	}
	up, err := h.Lineage(ctx, me, "credit/scorer", "1.4.0", false, 0)
	if err != nil || len(up.Nodes) != 4 || len(up.Edges) != 3 {
		t.Fatalf("lineage %+v, %v", up, err)
	}
	for _, e := range up.Edges {
		if e.Tier != TierVerified || e.Identity != "provenance-team" || e.Statement == "" {
			t.Errorf("edge %+v", e)
		}
	}
	down, err := h.Lineage(ctx, me, "credit/scorer", "1.3.0", true, 0)
	if err != nil || len(down.Edges) != 1 || down.Edges[0].From != string(model.Descriptor.Digest) {
		t.Errorf("descendants %+v, %v", down, err)
	}
	// What another key says of lineage is shown, as signed and not believed.
	h.attach("credit/scorer", parent.Descriptor, keys[verify.Release], lineage("", "other", h.clock()))
	up, _ = h.Lineage(ctx, me, "credit/scorer", "1.3.0", false, 0)
	if len(up.Edges) != 2 || up.Edges[0].Tier != TierSigned || up.Edges[0].Why == "" {
		t.Errorf("edges %+v", up.Edges)
	}
	h.sound()
}

func TestDecisionsAreRecorded(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	model, parent, keys := h.populate()
	decide := func(ref string) DecisionRecord {
		t.Helper()
		rec, err := h.Decide(ctx, me, "credit/scorer", ref, "prod-eu")
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	first := decide("1.4.0")
	if second := decide("1.4.0"); !second.Allow || second.LogIndex != first.LogIndex || second.Repeats != first.Repeats+1 {
		t.Errorf("a repeated allow has its own leaf: %+v, %+v", first.LogIndex, second.LogIndex)
	}
	deny1, deny2 := decide("1.3.0"), decide("1.3.0")
	if deny1.Allow || deny1.LogIndex == deny2.LogIndex {
		t.Errorf("denies share a leaf, or allow: %+v", deny1.Decision)
	}
	if body, err := h.Decision(ctx, me, deny1.LogIndex); err != nil || !bytes.Contains(body, []byte(`"allow":false`)) {
		t.Errorf("the recorded decision: %s, %v", body, err)
	}
	h.advance(2 * time.Hour)
	if later := decide("1.4.0"); later.LogIndex == first.LogIndex {
		t.Error("an allow after the window shares the leaf")
	}
	codes := func(r DecisionRecord) (list []string) {
		for _, x := range r.Reasons {
			list = append(list, x.Code)
		}
		return list
	}
	// The environment changes: the certificate is void.
	h.environment("prod-eu", "http://two")
	if rec := decide("1.4.0"); rec.Allow || !slices.Contains(codes(rec), "certificate.environment-changed") {
		t.Errorf("after the environment changed: %v", codes(rec))
	}
	h.environment("prod-eu", "http://one")
	if rec := decide("1.4.0"); rec.Allow {
		t.Log("the environment document has another time, so it is another one")
	}
	// The parent is withdrawn: so are its descendants.
	h.attach("credit/scorer", parent.Descriptor, keys[verify.Withdrawal], attest.Withdrawal{Reason: "poisoned data", WithdrawnAt: h.clock(), StatedBy: "risk"})
	if rec := decide("1.4.0"); !slices.Contains(codes(rec), "model.ancestor-recalled") {
		t.Errorf("after the parent was withdrawn: %v", codes(rec))
	}
	if rec := decide("1.3.0"); !slices.Contains(codes(rec), "model.recalled") {
		t.Errorf("the withdrawn model: %v", codes(rec))
	}
	_ = model
	h.sound()
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"a/b","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), ocispec.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		m, err := parseManifest(contentType, body, digest.SHA256)
		if err != nil {
			return
		}
		if m.digest != digest.FromBytes(body) {
			t.Error("the digest is not of the body")
		}
		for _, d := range slices.Concat(m.blobs, m.manifests) {
			if checkDigest(d) != nil {
				t.Errorf("a parsed manifest names %q", d)
			}
		}
	})
}

// The heart knows nothing of transports and engines.
func TestArrows(t *testing.T) {
	forbidden := map[string]string{
		"net/http":                                "transports are in registry/oci and registry/rpc",
		"google.golang.org/grpc":                  "transports are in registry/oci and registry/rpc",
		"github.com/dgraph-io/badger/v4":          "the engine is behind store.DB",
		"github.com/assay-dev/assay/conformance":  "the laboratory and the registry meet in OCI artifacts",
		"github.com/assay-dev/assay/registry/oci": "transports import the heart",
		"github.com/assay-dev/assay/registry/rpc": "transports import the heart",
	}
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		if why, ok := forbidden[p]; ok {
			t.Errorf("registry imports %s: %s", p, why)
		}
	}
}

func BenchmarkPutManifest(b *testing.B) {
	h := newHouse(b)
	h.blob("m", "{}")
	body := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"mediaType":"a/b","digest":"` + string(digest.FromString("{}")) + `","size":2},"layers":[],"annotations":{"n":"%08d"}}`)
	for i := 0; b.Loop(); i++ {
		h.put("m", "latest", fmt.Appendf(nil, string(body), i))
	}
}
