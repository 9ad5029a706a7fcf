package oci

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/badger"
	"github.com/assay-dev/assay/store/fs"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// BenchmarkSignedPush pushes artifacts of 1 MiB with oras over HTTP, onto a
// real disk, each with something attached: in turn a signature, which is
// verified before the commit, and a document of the same size, which is not.
// The requests and their sizes are the same, so what differs is what the
// server does for a signature. The metric is how much longer the median of
// the signed ones takes; the issue allows 5 %.
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
	id, err := registry.NewIdentity("log.example/bench")
	if err != nil {
		b.Fatal(err)
	}
	reg, err := registry.Open(b.Context(), registry.Options{DB: db, Blobs: blobs, Identity: id})
	if err != nil {
		b.Fatal(err)
	}
	defer reg.Close()
	me := access.Anonymous(true)
	key, err := verify.GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	trust := "version: 1\nidentities:\n- id: release\n  roles: [release]\n  repositories: ['**']\n  publicKey: |\n    " +
		strings.ReplaceAll(strings.TrimSpace(string(key.PublicPEM())), "\n", "\n    ") + "\n"
	if _, err := reg.SetTrust(b.Context(), me, []byte(trust)); err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewServer(Guard(Patience(Handler(Options{
		Registry: reg, Authenticate: func(*http.Request) (access.Actor, error) { return me, nil },
	}), time.Minute), GuardOptions{}))
	defer srv.Close()
	const name = "credit/scorer"
	repo, err := remote.NewRepository(strings.TrimPrefix(srv.URL, "http://") + "/" + name)
	if err != nil {
		b.Fatal(err)
	}
	repo.PlainHTTP = true
	send := func(mediaType string, body []byte) {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
		if err := repo.Push(b.Context(), d, bytes.NewReader(body)); err != nil {
			b.Fatal(err)
		}
	}
	send("application/octet-stream", []byte("{}"))

	random := rand.NewChaCha8([32]byte{})
	layer := make([]byte, 1<<20)
	push := func(signed bool) time.Duration {
		random.Read(layer)
		manifest := ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x-model", Config: ocispec.DescriptorEmptyJSON,
			Layers: []ocispec.Descriptor{{MediaType: "application/octet-stream", Digest: digest.FromBytes(layer), Size: int64(len(layer))}},
		}
		manifest.SchemaVersion = 2
		model, err := json.Marshal(manifest)
		if err != nil {
			b.Fatal(err)
		}
		subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(model), Size: int64(len(model))}
		statement, err := attest.Marshal(attest.Statement{
			Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(subject.Digest)}}, PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}"),
		})
		if err != nil {
			b.Fatal(err)
		}
		// Signing is the client's work.
		bundle, err := verify.SignStatement(b.Context(), key, statement)
		if err != nil {
			b.Fatal(err)
		}
		ref, err := verify.AttachBundle(subject, bundle, attest.PredicateSignature, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		attached := ref.Manifest
		if !signed {
			attached = bytes.ReplaceAll(attached, []byte("vnd.dev.sigstore.bundle"), []byte("vnd.dev.sigstorx.bundle"))
		}
		start := time.Now()
		send("application/octet-stream", layer)
		send(ocispec.MediaTypeImageManifest, model)
		send("application/octet-stream", bundle)
		send(ocispec.MediaTypeImageManifest, attached)
		took := time.Since(start)
		facts, err := reg.Facts(b.Context(), me, name, subject.Digest)
		if err != nil {
			b.Fatal(err)
		}
		if signed != (len(facts) == 1) || signed && facts[0].Outcome != verify.OutcomeVerified {
			b.Fatalf("signed %v: %+v", signed, facts)
		}
		return took
	}
	push(true) // connections, and the trust file is parsed
	var with, without []time.Duration
	for b.Loop() {
		// Each goes first as often as the other.
		for _, signed := range []bool{len(with)%2 == 0, len(with)%2 != 0} {
			if took := push(signed); signed {
				with = append(with, took)
			} else {
				without = append(without, took)
			}
		}
	}
	middle := func(list []time.Duration) float64 {
		slices.Sort(list)
		return float64(list[len(list)/2])
	}
	b.ReportMetric(100*(middle(with)/middle(without)-1), "%slower")
	b.ReportMetric(middle(without)/1e6, "ms/unsigned")
	b.ReportMetric(middle(with)/1e6, "ms/signed")
}
