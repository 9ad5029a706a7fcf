package registry

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/badger"
	"github.com/assay-dev/assay/store/fs"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// BenchmarkSignedPush pushes artifacts of 1 MiB onto a real disk, each with
// something attached: in turn a signature, which is verified before the
// commit, and a document of the same size, which is not. The metric is how
// much longer the signed ones take; the issue allows 5 %.
func BenchmarkSignedPush(b *testing.B) {
	dir := b.TempDir()
	space, err := store.NewSpace(dir, 1<<20)
	if err != nil {
		b.Fatal(err)
	}
	db, err := badger.Open(filepath.Join(dir, "db"), badger.Options{Space: space})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	blobs, err := fs.Open(filepath.Join(dir, "blobs"), fs.Options{Space: space})
	if err != nil {
		b.Fatal(err)
	}
	defer blobs.Close()
	id, err := NewIdentity("log.example/bench")
	if err != nil {
		b.Fatal(err)
	}
	r, err := Open(b.Context(), Options{DB: db, Blobs: blobs, Identity: id})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	h := &house{Registry: r, t: b, now: time.Now()}
	m := newTeam(h)
	random := rand.NewChaCha8([32]byte{})
	body := make([]byte, 1<<20)
	push := func(signed bool) time.Duration {
		random.Read(body)
		content := string(body)
		// What is signed is known before: signing is not the server's work.
		h.blob(credit, "{}")
		layer := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(body), Size: int64(len(body))}
		manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x-model", Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer}}
		manifest.SchemaVersion = 2
		raw, err := json.Marshal(manifest)
		if err != nil {
			b.Fatal(err)
		}
		model := digest.FromBytes(raw)
		bundle, err := verify.SignStatement(b.Context(), m.keys[verify.Release], releaseStatement(b, model))
		if err != nil {
			b.Fatal(err)
		}
		ref, err := verify.AttachBundle(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: model, Size: int64(len(raw))}, bundle, attest.PredicateSignature, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		attached := ref.Manifest
		if !signed {
			attached = bytes.ReplaceAll(attached, []byte("application/vnd.dev.sigstore.bundle.v0.3+json"), []byte("application/vnd.dev.sigstorx.bundle.v0.3+json"))
		}
		start := time.Now()
		h.blob(credit, content)
		h.put(credit, "latest", raw)
		h.blob(credit, string(bundle))
		h.put(credit, string(digest.FromBytes(attached)), attached)
		took := time.Since(start)
		if facts := m.facts(model); signed != (len(facts) == 1) || signed && facts[0].Outcome != verify.OutcomeVerified {
			b.Fatalf("signed %v: %+v", signed, facts)
		}
		return took
	}
	var with, without []time.Duration
	for b.Loop() {
		with = append(with, push(true))
		without = append(without, push(false))
	}
	b.ReportMetric(100*(float64(median(with))/float64(median(without))-1), "%slower")
	b.ReportMetric(float64(median(without))/1e6, "ms/unsigned")
	b.ReportMetric(float64(median(with))/1e6, "ms/signed")
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}
