package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/fs"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/gate"
)

// metered counts the bytes that are read of blobs.
type metered struct {
	store.Blobs
	read atomic.Int64
}

func (m *metered) Open(ctx context.Context, k store.Key) (store.Blob, error) {
	b, err := m.Blobs.Open(ctx, k)
	return meteredBlob{b, m}, err
}

type meteredBlob struct {
	store.Blob
	m *metered
}

func (b meteredBlob) Read(p []byte) (int, error) {
	n, err := b.Blob.Read(p)
	b.m.read.Add(int64(n))
	return n, err
}

// zeros is a reader of so many.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A bundle of 200 MB is a fact, with its reason, in the time that its manifest
// takes: not a byte of it is read, whatever the manifest says of its size.
func TestBundleOf200MB(t *testing.T) {
	const size = 200 << 20
	blobs, err := fs.Open(t.TempDir(), fs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := &metered{Blobs: blobs}
	h := &house{t: t, db: store.NewMemDB()}
	id, err := NewIdentity("log.example/test")
	if err != nil {
		t.Fatal(err)
	}
	if h.Registry, err = Open(t.Context(), Options{DB: h.db, Blobs: m, Identity: id}); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.now = time.Now()
	team := newTeam(h)
	model := h.put(credit, "1.0.0", h.model(credit, nil, "application/x-model", "weights")).Descriptor
	hash := digest.SHA256.Hash()
	io.Copy(hash, io.LimitReader(zeros{}, size))
	big := digest.NewDigest(digest.SHA256, hash)
	u, err := h.StartUpload(t.Context(), me, credit, StartUpload{})
	if err == nil {
		_, err = h.FinishUpload(t.Context(), me, credit, u.ID, Chunk{Body: io.LimitReader(zeros{}, size), Size: size}, big)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.read.Store(0)
	for name, tc := range map[string]struct {
		claims          int64
		artifact, layer string
		annotations     map[string]string
	}{
		"as it is":                     {size, attest.BundleType, attest.BundleType, nil},
		"said to be small":             {100, attest.BundleType, attest.BundleType, nil},
		"an old signature":             {size, verify.LegacyArtifact, "application/vnd.dev.cosign.simplesigning.v1+json", map[string]string{"dev.cosignproject.cosign/signature": "AAAA"}},
		"an old attestation":           {size, verify.LegacyArtifact, "application/vnd.dsse.envelope.v1+json", nil},
		"an old one, said to be small": {100, verify.LegacyArtifact, "application/vnd.dsse.envelope.v1+json", nil},
	} {
		manifest := ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest, ArtifactType: tc.artifact, Config: ocispec.DescriptorEmptyJSON, Subject: &model,
			Layers:      []ocispec.Descriptor{{MediaType: tc.layer, Digest: big, Size: tc.claims, Annotations: tc.annotations}},
			Annotations: map[string]string{attest.AnnotationPredicate: attest.PredicateSignature, "name": name},
		}
		manifest.SchemaVersion = 2
		body, err := json.Marshal(manifest)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		referrer := h.put(credit, string(digest.FromBytes(body)), body).Descriptor.Digest
		took := time.Since(start)
		facts := team.facts(model.Digest)
		i := slices.IndexFunc(facts, func(f Fact) bool { return f.Referrer == referrer })
		if i < 0 || facts[i].Outcome != verify.CodeTooLarge || facts[i].Remedy == "" {
			t.Errorf("%s: %+v", name, facts)
		}
		// Far more than it takes, on a machine that does other things as well.
		if took > 5*time.Second {
			t.Errorf("%s: its manifest took %v", name, took)
		}
	}
	if _, err := h.Decide(t.Context(), me, credit, "1.0.0", "prod"); err != nil {
		t.Fatal(err)
	}
	if n := m.read.Load(); n > 1<<20 {
		t.Errorf("%d bytes of it were read", n)
	}
}

// Thousands of bundles on one model, sent by many at once, slow nobody: the
// last is pushed as the first, the gate's answer about it is a deny that says
// why, in bounded time, and who works elsewhere meanwhile does not notice. Ten
// thousand of them with ASSAY_SOAK.
func TestManyBundles(t *testing.T) {
	many, within := 1_100, 20*time.Second
	if os.Getenv("ASSAY_SOAK") != "" {
		many, within = 10_000, time.Minute
	}
	h := newHouse(t)
	m := newTeam(h)
	model := h.put(credit, "1.0.0", h.model(credit, nil, "application/x-model", "weights")).Descriptor
	// Half of them verify, and the others are by a stranger, larger, and cost a
	// check by every key.
	h.blob(credit, "{}")
	stranger := signingKey(t)
	padded, err := attest.Marshal(attest.Statement{
		Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(model.Digest)}}, PredicateType: attest.PredicateSignature,
		Predicate: json.RawMessage(`{"x":"` + strings.Repeat("a", 10_000) + `"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	good, err := verify.SignStatement(t.Context(), m.keys[verify.Release], releaseStatement(t, model.Digest))
	if err != nil {
		t.Fatal(err)
	}
	bad, err := verify.SignStatement(t.Context(), stranger, padded)
	if err != nil {
		t.Fatal(err)
	}
	took := make([]time.Duration, many)
	var next atomic.Int64
	var group sync.WaitGroup
	start := time.Now()
	for range 8 {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= many {
					return
				}
				bundle := good
				if i%2 == 1 {
					bundle = bad
				}
				// Each is another bundle, by a blank somewhere in it.
				bundle = append(slices.Clone(bundle), strings.Repeat(" ", 1+i)...)
				ref, err := verify.AttachBundle(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: model.Digest, Size: model.Size}, bundle, attest.PredicateSignature, time.Unix(int64(i), 0))
				if err != nil {
					t.Error(err)
					return
				}
				began := time.Now()
				u, err := h.StartUpload(t.Context(), me, credit, StartUpload{})
				if err == nil {
					_, err = h.FinishUpload(t.Context(), me, credit, u.ID, Chunk{Body: strings.NewReader(string(bundle)), Size: int64(len(bundle))}, ref.Layer.Digest)
				}
				if err == nil {
					_, err = h.PutManifest(t.Context(), me, credit, PutManifest{Reference: string(ref.Descriptor.Digest), Body: ref.Manifest})
				}
				if took[i] = time.Since(began); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	// Meanwhile somebody else works.
	var worst time.Duration
	other := access.Actor{ID: "user:0000000000000001", Grants: []access.Grant{{Role: access.Operator, Repositories: "**"}}}
	works := 0
	for ; int(next.Load()) < many; works++ {
		began := time.Now()
		body := h.model("other/m", nil, "application/x-model", fmt.Sprint(works))
		if _, err := h.PutManifest(t.Context(), other, "other/m", PutManifest{Reference: "latest", Body: body}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Decide(t.Context(), other, "other/m", "latest", "prod"); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(began))
		time.Sleep(5 * time.Millisecond)
	}
	group.Wait()
	if whole := time.Since(start); whole > 8*within {
		t.Errorf("%d bundles took %v", many, whole)
	}
	if works == 0 || worst > 10*time.Second {
		t.Errorf("of %d pushes and questions of another, the slowest took %v", works, worst)
	}
	median := func(list []time.Duration) time.Duration {
		list = slices.Sorted(slices.Values(list))
		return list[len(list)/2]
	}
	first, last := median(took[:many/5]), median(took[many-many/5:])
	t.Logf("a bundle took %v at first and %v at last; the slowest push and question of another took %v", first, last, worst)
	if last > 5*first+20*time.Millisecond {
		t.Errorf("a bundle took %v at first and %v at last", first, last)
	}
	if facts := m.facts(model.Digest); len(facts) != many {
		t.Errorf("%d facts of %d", len(facts), many)
	}
	began := time.Now()
	rec := m.decide()
	if took := time.Since(began); took > within || rec.Allow || !slices.Contains(reasons(rec), gate.CodeIncomplete) {
		t.Errorf("after %v: allow %v, %v", took, rec.Allow, reasons(rec))
	}
	if len(rec.Reasons) > 1_100 {
		t.Errorf("%d reasons", len(rec.Reasons))
	}
	h.sound()
}

// A manifest of cosign before version 3 with ten thousand signatures is read as
// far as the bound, and says so.
func TestManyOldSignatures(t *testing.T) {
	h := newHouse(t)
	m := newTeam(h)
	model := h.put(credit, "1.0.0", h.model(credit, nil, "application/x-model", "weights")).Descriptor
	payload := `{"critical":{"image":{"docker-manifest-digest":"` + string(model.Digest) + `"},"type":"cosign container image signature"}}`
	l := h.blob(credit, payload)
	l.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
	l.Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(make([]byte, 70))}
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON, Layers: slices.Repeat([]ocispec.Descriptor{l}, 9_000)}
	manifest.SchemaVersion = 2
	body, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	h.put(credit, "sha256-"+model.Digest.Encoded()+".sig", body)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	facts := m.facts(model.Digest)
	if n := len(facts); n == 0 || n > 65 || facts[n-1].Outcome != verify.CodeTooLarge || facts[0].Outcome != verify.CodeUnknownKey {
		t.Errorf("%d facts, the last %+v", n, facts[max(0, n-1)])
	}
}
