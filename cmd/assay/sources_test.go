package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/gate"
)

// started is the real program on free ports, in this process.
func started(t *testing.T) *server {
	t.Helper()
	s, err := openServer(t.Context(), serveOptions{
		addr: "127.0.0.1:0", grpcAddr: "127.0.0.1:0", data: t.TempDir(), logFormat: "text", logLevel: "error", reserve: 1 << 20,
	}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// The same facts through the server's own index, through an OCI registry, and
// through the OCI layout of an evidence pack give the same decision, to the
// byte.
func TestOneDecisionFromThreeSources(t *testing.T) {
	s := started(t)
	ctx := t.Context()
	dir := t.TempDir()
	assay := func(args ...string) {
		t.Helper()
		var out bytes.Buffer
		if code := run(ctx, append(args, "--server", s.addresses().HTTP, "-q"), strings.NewReader(""), &out, &out); code != 0 {
			t.Fatalf("assay %v: status %d: %s", args, code, &out)
		}
	}
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("COSIGN_PASSWORD", "")
	assay("keys", "generate", "--role", "release,provenance,conformance,withdrawal", "--out", dir)
	var trust bytes.Buffer
	if code := run(ctx, []string{"trust", "new", "release=" + dir + "/release.pub", "provenance=" + dir + "/provenance.pub", "conformance=" + dir + "/conformance.pub",
		"withdrawal=" + dir + "/withdrawal.pub"}, nil, &trust, io.Discard); code != 0 {
		t.Fatal("no trust file")
	}
	assay("trust", "apply", file("trust.yaml", trust.String()))
	assay("push", "credit/scorer:1.3.0", file("old.onnx", "old"))
	assay("push", "credit/scorer:1.4.0", file("new.onnx", "new"))
	assay("sign", "--key", dir+"/release.key", "credit/scorer:1.4.0")
	assay("sign", "--key", dir+"/provenance.key", "credit/scorer:1.4.0") // without the role
	assay("lineage", "record", "--key", dir+"/provenance.key", "--parent", "credit/scorer:1.3.0", "--dataset", "d="+dir+"/old.onnx", "credit/scorer:1.4.0")

	g := &globals{out: io.Discard, err: io.Discard, server: s.addresses().HTTP, quiet: true, output: "text"}
	env := attest.Environment{Name: "prod", Target: attest.Target{Protocol: "oip-v2-rest", URL: "http://127.0.0.1:1", Model: "credit"}, Fingerprint: map[string]attest.FingerprintField{}, RecordedAt: time.Now().UTC()}
	a, err := conformance.EnvironmentArtifact(env)
	if err != nil {
		t.Fatal(err)
	}
	envRepo, _, err := g.repository("env/prod:current")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.pushDocument(ctx, envRepo, a, environmentTag); err != nil {
		t.Fatal(err)
	}
	repo, model, err := g.resolve(ctx, "credit/scorer:1.4.0")
	if err != nil {
		t.Fatal(err)
	}
	key, err := loadKey(dir + "/conformance.key")
	if err != nil {
		t.Fatal(err)
	}
	some := attest.ResourceOf("", digest.FromString("x"))
	now := time.Now().UTC()
	statement, err := attest.NewStatement(model.Digest, attest.Certificate{
		CertificateID: "urn:uuid:1", Verdict: attest.Certified, IssuedAt: now, Validity: attest.Validity{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)},
		Finding: attest.Finding{
			Claim: "at most 1 %", EnvironmentName: "prod", Environment: attest.ResourceOf("", a.Descriptor.Digest), Suite: some, Criteria: some, Plan: some, Replay: some, Cases: 1,
			Metrics: []attest.Metric{{Name: "flips", Comparator: "<=", Threshold: "0", Value: "0", SampleSize: 1, Passed: true}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := g.attachBundle(ctx, repo, model, verify.NewSigner(key), statement, attest.PredicateCertificate)
	if err != nil {
		t.Fatal(err)
	}

	compare := func(allow bool) {
		t.Helper()
		me := access.Anonymous(true)
		rec, err := s.registry.Decide(ctx, me, "credit/scorer", "1.4.0", "prod")
		if err != nil {
			t.Fatal(err)
		}
		if rec.Allow != allow {
			t.Fatalf("the server says %v: %+v", rec.Allow, rec.Reasons)
		}
		want, err := rec.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := verify.ParseTrust(trust.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		pack := filepath.Join(t.TempDir(), "pack")
		layout, err := oci.NewWithContext(ctx, pack)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range []string{"1.3.0", "1.4.0"} {
			if _, err := oras.ExtendedCopy(ctx, repo, tag, layout, tag, oras.DefaultExtendedCopyOptions); err != nil {
				t.Fatal(err)
			}
		}
		packed, err := verify.Layout(ctx, pack)
		if err != nil {
			t.Fatal(err)
		}
		for name, src := range map[string]verify.Source{"an OCI registry": verify.Repository(repo), "an OCI layout": packed} {
			ev, err := verify.Gather(ctx, src, model.Digest, verify.GatherOptions{Trust: parsed, Repository: "credit/scorer", Now: rec.At})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := gate.Decide(gate.DefaultPolicy(), ev, gate.Question{
				Model: model.Digest, Repository: "credit/scorer", Environment: "prod", EnvironmentDocument: a.Descriptor.Digest, Now: rec.At,
			}).Bytes()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s decides otherwise (%v):\n%s\n%s", name, err, got, want)
			}
		}
	}
	compare(true)
	assay("withdraw", "--key", dir+"/withdrawal.key", "--reason", "a mistake", "credit/scorer@"+string(certificate.Descriptor.Digest))
	compare(false)
	assay("withdraw", "--key", dir+"/withdrawal.key", "--reason", "recall", "credit/scorer:1.3.0")
	compare(false)
}
