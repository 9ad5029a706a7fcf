package verify

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/verifytest"
)

var (
	now   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	model = digest.FromString("model")
)

func newKey(t testing.TB) *Key {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func entry(id string, k *Key, extra string, roles ...Role) string {
	list := make([]string, len(roles))
	for i, r := range roles {
		list[i] = string(r)
	}
	return fmt.Sprintf("- id: %s\n  roles: [%s]\n  repositories: ['credit/*']\n%s  publicKey: |\n    %s\n", id, strings.Join(list, ", "), extra,
		strings.ReplaceAll(strings.TrimSpace(string(k.PublicPEM())), "\n", "\n    "))
}

func trustOf(t testing.TB, entries ...string) *Trust {
	t.Helper()
	trust, err := ParseTrust([]byte("version: 1\nidentities:\n" + strings.Join(entries, "")))
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func releaseOf(subjects ...digest.Digest) []byte {
	s := attest.Statement{Type: attest.StatementTypeV1, PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}")}
	for _, d := range subjects {
		s.Subject = append(s.Subject, attest.Resource{Digest: attest.Digests(d)})
	}
	raw, err := attest.Marshal(s)
	if err != nil {
		panic(err)
	}
	return raw
}

func withdrawal(subject digest.Digest) []byte {
	raw, err := attest.NewStatement(subject, attest.Withdrawal{Reason: "recall", WithdrawnAt: now, StatedBy: "risk"})
	if err != nil {
		panic(err)
	}
	return raw
}

func signed(t testing.TB, k *Key, statement []byte) []byte {
	t.Helper()
	b, err := SignStatement(t.Context(), k, statement)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) || f.Code != code {
		t.Errorf("error %v, want code %s", err, code)
	}
}

var here = Context{Repository: "credit/scorer", Now: now}

func TestSignAndVerify(t *testing.T) {
	k, other := newKey(t), newKey(t)
	trust := trustOf(t, entry("stranger", other, "", Release), entry("team", k, "", Release))
	b := signed(t, k, releaseOf(model))
	v, err := Bundle(b, model, trust, here)
	if err != nil || v.Identity != "team" || v.Role != Release || v.Subject != model || v.Trust != trust.Digest() || !bytes.Equal(v.Payload, releaseOf(model)) {
		t.Fatalf("%+v, %v", v, err)
	}
	_, err = Bundle(b, model, trustOf(t, entry("stranger", other, "", Release)), here)
	wantCode(t, err, CodeUnknownKey)
	_, err = Bundle(b, model, NoTrust(), here)
	wantCode(t, err, CodeUnknownKey)
	_, err = Bundle(b, digest.FromString("another model"), trust, here)
	wantCode(t, err, CodeSubject)
	_, err = Bundle(b, model, trustOf(t, entry("team", k, "", Provenance)), here)
	wantCode(t, err, CodeRole)
	_, err = Bundle(b, model, trust, Context{Repository: "other/scorer", Now: now})
	wantCode(t, err, CodeRepository)
	_, err = Bundle([]byte("{}"), model, trust, here)
	wantCode(t, err, CodeBundleInvalid)
	_, err = Bundle(make([]byte, MaxBundle+1), model, trust, here)
	wantCode(t, err, CodeTooLarge)
	_, err = Bundle(signed(t, k, releaseOf(digest.FromString("x"), model)), model, trust, here)
	if err != nil {
		t.Errorf("cosign's statements may have several subjects: %v", err)
	}
}

func TestStatementsOfOurs(t *testing.T) {
	k := newKey(t)
	trust := trustOf(t, entry("team", k, "", Roles...))
	if _, err := Bundle(signed(t, k, withdrawal(model)), model, trust, here); err != nil {
		t.Fatal(err)
	}
	change := func(edit func(m map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(withdrawal(model), &m); err != nil {
			t.Fatal(err)
		}
		edit(m)
		raw, err := attest.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, tc := range map[string]struct {
		statement []byte
		code      string
	}{
		"several subjects": {change(func(m map[string]any) {
			m["subject"] = append(m["subject"].([]any), map[string]any{"digest": map[string]any{"sha256": digest.FromString("x").Encoded()}})
		}), CodeSubject},
		"a field nobody knows": {change(func(m map[string]any) { m["predicate"].(map[string]any)["unless"] = "it rains" }), CodeStatement},
		"a missing field":      {change(func(m map[string]any) { delete(m["predicate"].(map[string]any), "reason") }), CodeStatement},
		"an unknown predicate": {change(func(m map[string]any) { m["predicateType"] = "https://example.com/x" }), CodePredicate},
		"a refusal as a bundle": {func() []byte {
			return change(func(m map[string]any) { m["predicateType"] = attest.PredicateRefusal })
		}(), CodeStatement},
	} {
		_, err := Bundle(signed(t, k, tc.statement), model, trust, here)
		if err == nil {
			t.Errorf("%s verifies", name)
			continue
		}
		wantCode(t, err, tc.code)
	}
	for name, raw := range map[string]string{
		"another type of statement": strings.Replace(string(withdrawal(model)), "Statement/v1", "Statement/v0.1", 1),
		"no subject":                `{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"x","predicate":{}}`,
		"duplicate keys":            strings.Replace(string(withdrawal(model)), `"predicateType"`, `"predicateType":"x","predicateType"`, 1),
	} {
		if _, err := SignStatement(t.Context(), k, []byte(raw)); err == nil {
			t.Errorf("%s was signed", name)
		}
	}
}

// Change any one byte of a bundle: it does not verify, or says the same.
func TestEveryByteOfABundleCounts(t *testing.T) {
	k := newKey(t)
	trust := trustOf(t, entry("team", k, "", Release))
	b := signed(t, k, releaseOf(model))
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if v, err := Bundle(bad, model, trust, here); err == nil && !bytes.Equal(v.Payload, releaseOf(model)) {
			t.Errorf("byte %d (%q) was changed, and it verifies as %s", i, b[i], v.Payload)
		}
	}
	var parsed map[string]any
	if err := json.Unmarshal(b, &parsed); err != nil {
		t.Fatal(err)
	}
	env := parsed["dsseEnvelope"].(map[string]any)
	for _, field := range []string{"payload", "payloadType", "signatures"} {
		kept := env[field]
		delete(env, field)
		raw, _ := json.Marshal(parsed)
		if _, err := Bundle(raw, model, trust, here); err == nil {
			t.Errorf("it verifies without %s", field)
		}
		env[field] = kept
	}
	env["signatures"] = append(env["signatures"].([]any), env["signatures"].([]any)[0])
	raw, _ := json.Marshal(parsed)
	if _, err := Bundle(raw, model, trust, here); err == nil {
		t.Error("a bundle with two signatures verifies")
	}
}

func TestWindows(t *testing.T) {
	k := newKey(t)
	b := signed(t, k, releaseOf(model))
	day := 24 * time.Hour
	window := "  notBefore: 2026-02-01T00:00:00Z\n  notAfter: 2026-04-01T00:00:00Z\n"
	compromised := "  distrustAfter: 2026-02-15T00:00:00Z\n"
	for name, tc := range map[string]struct {
		window        string
		admitted, now time.Time
		ok            bool
	}{
		"inside, no evidence":           {window, time.Time{}, now, true},
		"before, no evidence":           {window, time.Time{}, now.Add(-60 * day), false},
		"after, no evidence":            {window, time.Time{}, now.Add(60 * day), false},
		"the last moment":               {window, time.Time{}, time.Date(2026, 3, 31, 23, 59, 59, 0, time.UTC), true},
		"the first moment after":        {window, time.Time{}, time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC), false},
		"admitted inside, asked after":  {window, now, now.Add(600 * day), true},
		"admitted after":                {window, now.Add(60 * day), now, false},
		"lost, admitted before":         {compromised, now.Add(-20 * day), now, true},
		"lost, admitted after":          {compromised, now, now, false},
		"lost, and no evidence of when": {compromised, time.Time{}, now.Add(-20 * day), false},
		"no window":                     {"", time.Time{}, now, true},
	} {
		_, err := Bundle(b, model, trustOf(t, entry("team", k, tc.window, Release)), Context{Repository: "credit/scorer", AdmittedAt: tc.admitted, Now: tc.now})
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			wantCode(t, err, CodeWindow)
		}
	}
}

func refusalStatement(t testing.TB, replay digest.Digest) []byte {
	t.Helper()
	some := attest.ResourceOf("", digest.FromString("x"))
	raw, err := attest.NewStatement(replay, attest.Refusal{
		RefusalID: "urn:uuid:1", Verdict: attest.Rejected, Model: attest.ResourceOf("", model), Reasons: []string{"it differs"}, IssuedAt: now,
		Finding: attest.Finding{
			Claim: "not equivalent", EnvironmentName: "prod", Environment: some, Suite: some, Criteria: some, Plan: some, Replay: attest.ResourceOf("", replay), Cases: 1,
			Metrics: []attest.Metric{{Name: "flips", Comparator: "<=", Threshold: "0", Value: "1", SampleSize: 1}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRefusals(t *testing.T) {
	k := newKey(t)
	trust := trustOf(t, entry("lab", k, "", Conformance, Release))
	replay := digest.FromString("replay")
	env, err := SignRefusal(k, refusalStatement(t, replay))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := Refusal(env, replay, trust, here); err != nil || v.Role != Conformance {
		t.Fatalf("%+v, %v", v, err)
	}
	_, err = Refusal(env, model, trust, here)
	wantCode(t, err, CodeSubject)
	if _, err := Bundle(env, replay, trust, here); err == nil {
		t.Error("a refusal passes for a bundle")
	}
	if _, err := SignRefusal(k, releaseOf(model)); err == nil {
		t.Error("a release was signed as a refusal")
	}
	ref, err := AttachRefusal(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: replay, Size: 1}, env, now)
	if err != nil || strings.Contains(string(ref.Manifest), "sigstore") {
		t.Errorf("%s, %v", ref.Manifest, err)
	}
}

// The form that cosign v3 writes and reads (cosign specs/BUNDLE_SPEC.md).
func TestAttachBundleIsCosignsForm(t *testing.T) {
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: model, Size: 7, Annotations: map[string]string{"not": "copied"}}
	ref, err := AttachBundle(subject, []byte("bundle"), attest.PredicateSignature, now)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json",` +
		`"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},` +
		`"layers":[{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","digest":"` + string(digest.FromString("bundle")) + `","size":6}],` +
		`"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + string(model) + `","size":7},` +
		`"annotations":{"dev.sigstore.bundle.content":"dsse-envelope","dev.sigstore.bundle.predicateType":"https://sigstore.dev/cosign/sign/v1","org.opencontainers.image.created":"2026-03-01T12:00:00Z"}}`
	if string(ref.Manifest) != want {
		t.Errorf("manifest\n%s\nwant\n%s", ref.Manifest, want)
	}
}

func TestKeys(t *testing.T) {
	k := newKey(t)
	for _, passphrase := range []string{"", "secret"} {
		raw, err := k.EncryptedPEM([]byte(passphrase))
		if err != nil {
			t.Fatal(err)
		}
		back, err := LoadKey(raw, []byte(passphrase))
		if err != nil || back.Hint() != k.Hint() {
			t.Errorf("passphrase %q: %v", passphrase, err)
		}
		if _, err := LoadKey(raw, []byte("wrong")); !errors.Is(err, ErrPassphrase) {
			t.Errorf("a wrong passphrase: %v", err)
		}
	}
	der, _ := x509.MarshalPKCS8PrivateKey(k.private)
	if back, err := LoadKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil); err != nil || back.Hint() != k.Hint() {
		t.Errorf("PKCS #8: %v", err)
	}
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	der, _ = x509.MarshalPKCS8PrivateKey(p384)
	for name, raw := range map[string][]byte{
		"another curve": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "a public key": k.PublicPEM(), "nothing": nil, "noise": []byte("hello"),
	} {
		if _, err := LoadKey(raw, nil); err == nil {
			t.Errorf("%s was loaded", name)
		}
	}
}

func TestParseTrust(t *testing.T) {
	k := newKey(t)
	good := "version: 1\nidentities:\n" + entry("team", k, "", Release)
	a, err := ParseTrust([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseTrust([]byte("# a comment\n" + strings.ReplaceAll(good, "roles: [release]", "roles:\n    - release")))
	if err != nil || a.Digest() != b.Digest() {
		t.Errorf("the same trust in another layout has another digest (%v)", err)
	}
	for name, raw := range map[string]string{
		"empty":             "",
		"another version":   strings.Replace(good, "version: 1", "version: 2", 1),
		"unknown field":     good + "  note: hello\n",
		"unknown role":      strings.Replace(good, "[release]", "[boss]", 1),
		"no roles":          strings.Replace(good, "[release]", "[]", 1),
		"no repositories":   strings.Replace(good, "['credit/*']", "[]", 1),
		"bad pattern":       strings.Replace(good, "['credit/*']", "['[x']", 1),
		"bad key":           strings.Replace(good, "BEGIN PUBLIC", "BEGIN PRIVATE", 1),
		"same id twice":     good + entry("team", newKey(t), "", Release),
		"a window reversed": "version: 1\nidentities:\n" + entry("team", k, "  notBefore: 2026-02-01T00:00:00Z\n  notAfter: 2026-01-01T00:00:00Z\n", Release),
		"two documents":     good + "---\nversion: 1\n",
		"an empty entry":    good + "-\n",
	} {
		if _, err := ParseTrust([]byte(raw)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// memory is a Source in memory.
type memory map[digest.Digest]struct {
	desc    ocispec.Descriptor
	data    []byte
	subject digest.Digest
}

func (m memory) Referrers(_ context.Context, subject digest.Digest) (list []ocispec.Descriptor, err error) {
	for _, x := range m {
		if x.subject == subject {
			list = append(list, x.desc)
		}
	}
	return list, nil
}

func (m memory) Fetch(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	x, ok := m[d.Digest]
	if !ok {
		return nil, fmt.Errorf("no %s", d.Digest)
	}
	return x.data, nil
}

func (m memory) attach(t testing.TB, subject digest.Digest, bundle []byte, predicateType string) *Referrer {
	t.Helper()
	ref, err := AttachBundle(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 1}, bundle, predicateType, now)
	if err != nil {
		t.Fatal(err)
	}
	desc := ref.Descriptor
	desc.Annotations = map[string]string{attest.AnnotationPredicate: predicateType}
	x := m[desc.Digest]
	x.desc, x.data, x.subject = desc, ref.Manifest, subject
	m[desc.Digest] = x
	y := m[ref.Layer.Digest]
	y.desc, y.data = ref.Layer, ref.Signed
	m[ref.Layer.Digest] = y
	return ref
}

func TestGatherLeavesNothingOut(t *testing.T) {
	k, stranger := newKey(t), newKey(t)
	trust := trustOf(t, entry("team", k, "", Roles...))
	src := memory{}
	src.attach(t, model, signed(t, k, releaseOf(model)), attest.PredicateSignature)
	src.attach(t, model, signed(t, stranger, releaseOf(model)), attest.PredicateSignature)
	src.attach(t, model, []byte("not a bundle"), attest.PredicateLineage)
	lost := src.attach(t, model, signed(t, k, withdrawal(model)), attest.PredicateWithdrawal)
	delete(src, lost.Layer.Digest)
	ev, err := Gather(t.Context(), src, model, GatherOptions{Trust: trust, Repository: "credit/scorer", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range ev.Facts {
		got[f.PredicateType+" "+f.Outcome]++
	}
	for _, want := range []string{
		attest.PredicateSignature + " " + OutcomeVerified, attest.PredicateSignature + " " + CodeUnknownKey,
		attest.PredicateLineage + " " + CodeBundleInvalid, attest.PredicateWithdrawal + " " + CodeUnreadable,
	} {
		if got[want] != 1 {
			t.Errorf("%q is missing in %v", want, got)
		}
	}
	if _, err := Gather(t.Context(), src, model, GatherOptions{Trust: trust}); err == nil {
		t.Error("evidence was gathered at no time")
	}
}

func tool(t *testing.T, name string) string {
	dir := os.Getenv("ASSAY_TOOLS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "assay", "tools")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not built: run 'make tools'", name)
		}
		t.Skipf("%s is not built: run 'make tools'", name)
	}
	return path
}

// cosign reads our key files, and we read cosign's.
func TestKeyFilesAreCosigns(t *testing.T) {
	cosign := tool(t, "cosign")
	dir := t.TempDir()
	k := newKey(t)
	raw, err := k.EncryptedPEM([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ours.key"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	call := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(cosign, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=secret", "HOME="+dir)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("cosign %v: %v", args, err)
		}
		return string(out)
	}
	if got := call("public-key", "--key", "ours.key"); got != string(k.PublicPEM()) {
		t.Errorf("cosign reads another key: %s", got)
	}
	call("generate-key-pair")
	theirs, err := os.ReadFile(filepath.Join(dir, "cosign.key"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(filepath.Join(dir, "cosign.pub"))
	if err != nil {
		t.Fatal(err)
	}
	back, err := LoadKey(theirs, []byte("secret"))
	if err != nil || string(back.PublicPEM()) != string(public) {
		t.Errorf("cosign's key: %v", err)
	}
}

func FuzzBundle(f *testing.F) {
	k := fixedKey(f)
	trust := trustOf(f, entry("team", k, "", Release))
	f.Add(signed(f, k, releaseOf(model)))
	f.Add(manifestSigned(f, keypair{k}, "model"))
	f.Add(manifestSigned(f, keypair{k}, "other"))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","dsseEnvelope":{"payload":"` + base64.StdEncoding.EncodeToString([]byte("{}")) + `"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := Bundle(raw, model, trust, here)
		var failure *Failure
		if err != nil && !errors.As(err, &failure) {
			t.Errorf("error %v is no failure with a code", err)
		}
		if err == nil && v.Payload == nil && v.Statement.PredicateType == attest.PredicateSignature && v.Statement.Names(model) {
			return // the manifest itself was signed, which is not opened ahead
		}
		if err == nil && !bytes.Equal(v.Payload, releaseOf(model)) {
			t.Errorf("a forged statement verifies: %s", v.Payload)
		}
		// What was opened ahead comes to the same.
		if o, ok := Ahead(raw, trust); ok {
			if _, again := o.Verify(model, trust, here); (again == nil) != (err == nil) || again != nil && failureOf(again).Code != failureOf(err).Code {
				t.Errorf("opened ahead it is %v, and else %v", again, err)
			}
		} else if err == nil {
			t.Error("it verifies, and cannot be opened ahead")
		}
	})
}

// fixedKey is the same key in every process of a fuzzing run, so that what one
// signs is a signature to the others.
func fixedKey(t testing.TB) *Key {
	t.Helper()
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func FuzzParseTrust(f *testing.F) {
	f.Add([]byte("version: 1\nidentities:\n" + entry("team", newKey(f), "", Release)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if trust, err := ParseTrust(raw); err == nil && trust.Digest().Validate() != nil {
			t.Error("a trust file without a digest")
		}
	})
}

// BenchmarkVerifyBundle verifies bundles signed with a key and, in turn, does
// the bare ECDSA P-256 check that is in each of them. The metric of-ecdsa is
// the rate of the first in terms of the second, on one core: at least 0.5 is
// asked for.
func BenchmarkVerifyBundle(b *testing.B) {
	k := newKey(b)
	trust := trustOf(b, entry("team", k, "", Release))
	bundle := signed(b, k, releaseOf(model))
	_, sig, err := k.sign([]byte("message"))
	if err != nil {
		b.Fatal(err)
	}
	var whole, bare time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := Bundle(bundle, model, trust, here); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		if !checkECDSA(&k.private.PublicKey, []byte("message"), sig) {
			b.Fatal("it does not verify")
		}
		whole, bare = whole+middle.Sub(start), bare+time.Since(middle)
	}
	b.ReportMetric(float64(bare)/float64(whole), "of-ecdsa")
	b.ReportMetric(float64(b.N)/whole.Seconds(), "bundles/s")
	b.ReportMetric(float64(b.N)/bare.Seconds(), "ecdsa/s")
}

func FuzzStatus(f *testing.F) {
	k := fixedKey(f)
	trust := trustOf(f, entry("registry", k, "", Withdrawal))
	raw, err := SignStatusList(k, attest.StatusList{Version: 1, Issuer: "x", Validity: attest.Validity{NotBefore: now, NotAfter: now.Add(time.Hour)}, Withdrawn: []attest.StatusEntry{{Digest: string(model), Since: now}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseStatus(raw, trust, here)
		var failure *Failure
		if err != nil && !errors.As(err, &failure) {
			t.Errorf("error %v is no failure with a code", err)
		}
		if err == nil {
			if _, ok := s.List.Find(model); !ok {
				t.Error("a forged status list verifies")
			}
		}
	})
}

func FuzzLegacy(f *testing.F) {
	k := fixedKey(f)
	at := time.Now()
	ca := verifytest.NewCA(f, at.Add(-day), at.Add(day))
	rekor, tsa := verifytest.NewRekor(f, at), verifytest.NewTSA(f, at, at.Add(-day), at.Add(day))
	trust := parse(f, file(entry("team", k, "", Release)+certified("ci", "authority: sigstore, san: ci@acme.example, issuer: "+issuer, "")+certified("acme", "authority: acme, san: release@acme.example", ""),
		"authorities:\n"+authorityEntry("sigstore", "trustedRoot", ca.TrustedRoot(f, tsa, rekor))+authorityEntry("acme", "certificates", ca.Root())+authorityEntry("clock", "timestamps", tsa.PEM())))
	payload := simple(model)
	_, sig, err := k.sign(payload)
	if err != nil {
		f.Fatal(err)
	}
	add := func(l oldLayer) {
		d := l.Descriptor
		d.Digest, d.Size = digest.FromBytes(l.blob), int64(len(l.blob))
		raw, err := json.Marshal(ocispec.Manifest{Layers: []ocispec.Descriptor{d}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, l.blob)
	}
	add(oldLayer{payload, ocispec.Descriptor{MediaType: legacySignature, Annotations: map[string]string{annotationSignature: base64.StdEncoding.EncodeToString(sig), annotationTimestamp: "{}"}}})
	add(oldLayer{[]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AA=="}]}`), ocispec.Descriptor{MediaType: legacyAttestation}})
	who, private := ca.Keyless(f, "ci@acme.example", issuer, at.Add(-time.Minute), at.Add(time.Minute)), ca.Issue(f, "release@acme.example", at.Add(-day), at.Add(day))
	for _, l := range []oldLayer{old(f, who, payload, false, rekor), old(f, who, releaseOf(model), true, rekor), old(f, private, payload, false, nil)} {
		add(l)
		add(l.stamped(f, tsa, l.signature(f)))
	}
	f.Fuzz(func(t *testing.T, manifest, blob []byte) {
		list, err := Legacy(t.Context(), manifest, model, func(context.Context, ocispec.Descriptor) ([]byte, error) { return blob, nil }, trust, moved(at))
		if err != nil || len(list) == 0 {
			t.Fatalf("%v, %v", list, err)
		}
		for _, s := range list {
			if (s.Verified == nil) == (s.Failure == nil) {
				t.Errorf("%+v", s)
			}
			if s.Verified != nil && !bytes.Equal(s.Verified.Payload, payload) && !bytes.Equal(s.Verified.Payload, releaseOf(model)) {
				t.Errorf("a forged signature verifies: %s", s.Verified.Payload)
			}
		}
	})
}
