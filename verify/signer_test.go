package verify

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms"

	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/verifytest"
)

// offline fails a test in which something reaches for a network.
type offline struct{ t *testing.T }

func (o offline) RoundTrip(r *http.Request) (*http.Response, error) {
	o.t.Errorf("a request to %s", r.URL)
	return nil, http.ErrUseLastResponse
}

// A KMS whose keys are in this process, through Sigstore's interface.
type memoryKMS struct {
	signature.SignerVerifier
	public crypto.PublicKey
	broken bool
}

func (k memoryKMS) CreateKey(context.Context, string) (crypto.PublicKey, error) { return k.public, nil }
func (k memoryKMS) CryptoSigner(context.Context, func(error)) (crypto.Signer, crypto.SignerOpts, error) {
	return nil, nil, http.ErrNotSupported
}
func (k memoryKMS) SupportedAlgorithms() []string { return nil }
func (k memoryKMS) DefaultAlgorithm() string      { return "" }

func (k memoryKMS) SignMessage(message io.Reader, opts ...signature.SignOption) ([]byte, error) {
	sig, err := k.SignerVerifier.SignMessage(message, opts...)
	if k.broken && err == nil {
		sig[len(sig)-1] ^= 1
	}
	return sig, err
}

func TestKMS(t *testing.T) {
	ctx := t.Context()
	keys := map[string]*ecdsa.PrivateKey{}
	for name, curve := range map[string]elliptic.Curve{"release": elliptic.P256(), "broken": elliptic.P256(), "large": elliptic.P384()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = k
	}
	kms.AddProvider("memorykms://", func(_ context.Context, ref string, hash crypto.Hash, _ ...signature.RPCOption) (kms.SignerVerifier, error) {
		name := strings.TrimPrefix(ref, "memorykms://")
		sv, err := signature.LoadECDSASignerVerifier(keys[name], hash)
		return memoryKMS{sv, keys[name].Public(), name == "broken"}, err
	})
	s, err := KMSSigner(ctx, "memorykms://release")
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Sign(ctx, releaseOf(model))
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(keys["release"])
	if err != nil {
		t.Fatal(err)
	}
	// It is verified with the public key, and no KMS is asked.
	trust := parse(t, file(entry("hsm", k, "  kms: memorykms://release\n", Release), ""))
	if v, err := Bundle(b, model, trust, here); err != nil || v.Identity != "hsm" {
		t.Errorf("%+v, %v", v, err)
	}
	if public, err := s.PublicPEM(); err != nil || public != string(k.PublicPEM()) || s.Hint() != k.Hint() {
		t.Errorf("public key %s, %v", public, err)
	}
	broken, err := KMSSigner(ctx, "memorykms://broken")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broken.Sign(ctx, releaseOf(model)); err == nil {
		t.Error("what a broken KMS signed was taken for a signature")
	}
	for _, ref := range []string{"memorykms://large", "unknownkms://x"} {
		if _, err := KMSSigner(ctx, ref); err == nil {
			t.Errorf("%s signs", ref)
		}
	}
	if !IsKMS("awskms:///alias/x") || IsKMS("keys/release.key") {
		t.Error("a file is taken for a KMS, or the other way round")
	}
}

// Keyless, against a Fulcio and a timestamp authority on this machine.
func TestKeylessSigner(t *testing.T) {
	now := time.Now()
	ca := verifytest.NewCA(t, now.Add(-day), now.Add(day))
	tsa := verifytest.NewTSA(t, now, now.Add(-day), now.Add(day))
	fulcio, clock := httptest.NewServer(ca.Fulcio(t, "ci@acme.example", issuer)), httptest.NewServer(tsa)
	defer fulcio.Close()
	defer clock.Close()
	s, err := KeylessSigner(Keyless{Fulcio: fulcio.URL, Token: verifytest.IdentityToken("ci@acme.example", issuer)})
	if err != nil {
		t.Fatal(err)
	}
	s.Timestamped(nil, clock.URL)
	b, err := s.Sign(t.Context(), releaseOf(model))
	if err != nil {
		t.Fatal(err)
	}
	identity := certified("ci", "authority: acme, san: ci@acme.example, issuer: "+issuer, "")
	trust := parse(t, file(identity, "authorities:\n"+authorityEntry("acme", "trustedRoot", ca.TrustedRoot(t, tsa))))
	if v, err := Bundle(b, model, trust, moved(now.Add(2000*day))); err != nil || v.Identity != "ci" || v.Signed.By != ByTimestamp {
		t.Errorf("%+v, %v", v, err)
	}
	// Without a timestamp nothing shows that the certificate was valid.
	bare, err := KeylessSigner(Keyless{Fulcio: fulcio.URL, Token: verifytest.IdentityToken("ci@acme.example", issuer)})
	if err != nil {
		t.Fatal(err)
	}
	if b, err = bare.Sign(t.Context(), releaseOf(model)); err != nil {
		t.Fatal(err)
	}
	_, err = Bundle(b, model, trust, moved(now))
	wantCode(t, err, CodeTime)
	for _, k := range []Keyless{{}, {Fulcio: fulcio.URL}, {Token: "x"}} {
		if _, err := KeylessSigner(k); err == nil {
			t.Errorf("%+v signs", k)
		}
	}
}

// Keyless with a transparency log, of both versions, on this machine.
func TestKeylessSignerWithRekor(t *testing.T) {
	now := time.Now()
	ca := verifytest.NewCA(t, now.Add(-day), now.Add(day))
	tsa := verifytest.NewTSA(t, now, now.Add(-day), now.Add(day))
	rekor, other := verifytest.NewRekor(t, now), verifytest.NewRekor(t, now)
	address := func(h http.Handler) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return s.URL
	}
	fulcio, clock := address(ca.Fulcio(t, "ci@acme.example", issuer)), address(tsa)
	sign := func(log http.Handler, version string, stamped bool) []byte {
		t.Helper()
		s, err := KeylessSigner(Keyless{Fulcio: fulcio, Token: verifytest.IdentityToken("ci@acme.example", issuer), Rekor: []string{address(log) + version}})
		if err != nil {
			t.Fatal(err)
		}
		if stamped {
			s.Timestamped(nil, clock)
		}
		b, err := s.Sign(t.Context(), releaseOf(model))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	naming := func(logs ...*verifytest.Rekor) *Trust {
		t.Helper()
		return parse(t, file(certified("ci", "authority: acme, san: ci@acme.example, issuer: "+issuer, ""), "authorities:\n"+authorityEntry("acme", "trustedRoot", ca.TrustedRoot(t, tsa, logs...))))
	}
	entry := func(raw []byte, change func(map[string]any)) []byte {
		t.Helper()
		var b map[string]any
		if err := json.Unmarshal(raw, &b); err != nil {
			t.Fatal(err)
		}
		change(b["verificationMaterial"].(map[string]any)["tlogEntries"].([]any)[0].(map[string]any))
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	years := moved(now.Add(2000 * day))
	for _, version := range []string{"#v1", ""} {
		b := sign(rekor, version, true)
		if v, err := Bundle(b, model, naming(rekor), years); err != nil || v.Identity != "ci" || v.Signed.By != ByTimestamp {
			t.Errorf("log%s: %+v, %v", version, v, err)
		}
		if v, err := Bundle(b, model, naming(other, rekor), years); err != nil || v.Identity != "ci" {
			t.Errorf("log%s, of two that the root names: %+v, %v", version, v, err)
		}
		proof := func(e map[string]any) map[string]any { return e["inclusionProof"].(map[string]any) }
		for name, tc := range map[string]struct {
			bundle []byte
			trust  *Trust
		}{
			"a log that the root does not name": {b, naming(other)},
			"the log's name, and another key":   {sign(rekor.Impostor(t), version, true), naming(rekor)},
			"another place in the log":          {entry(b, func(e map[string]any) { e["logIndex"] = "0"; proof(e)["logIndex"] = "0" }), naming(rekor)},
			"a proof that leads elsewhere":      {entry(b, func(e map[string]any) { h := proof(e)["hashes"].([]any); h[0] = proof(e)["rootHash"] }), naming(rekor)},
			"the entry of another signature": {entry(b, func(e map[string]any) {
				entry(sign(rekor, version, true), func(their map[string]any) { maps.Copy(e, their) })
			}), naming(rekor)},
		} {
			_, err := Bundle(tc.bundle, model, tc.trust, years)
			if err == nil || failureOf(err).Code != CodeRekor {
				t.Errorf("log%s: %s: %v, want %s", version, name, err, CodeRekor)
			}
		}
		// "Rekor v2 gives no time": a timestamp authority has to. Version 1 signs
		// the one at which it logged.
		v, err := Bundle(sign(rekor, version, false), model, naming(rekor), years)
		if version == "" {
			wantCode(t, err, CodeTime)
		} else if err != nil || v.Signed.By != ByRekor || !v.Signed.At.Equal(now.Truncate(time.Second)) {
			t.Errorf("log%s without a timestamp: %+v, %v", version, v, err)
		}
	}
	// A log that does not answer is an error of signing, not a bundle without.
	s, err := KeylessSigner(Keyless{Fulcio: fulcio, Token: verifytest.IdentityToken("ci@acme.example", issuer), Rekor: []string{address(http.NotFoundHandler())}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := s.Sign(t.Context(), releaseOf(model)); err == nil {
		t.Errorf("signed without the log: %s", b)
	}
}

// A key with a certificate, and several timestamps.
func TestCertifiedSigner(t *testing.T) {
	now := time.Now()
	ca := verifytest.NewCA(t, now.Add(-day), now.Add(day))
	one, two := verifytest.NewTSA(t, now.Add(time.Minute), now.Add(-day), now.Add(day)), verifytest.NewTSA(t, now, now.Add(-day), now.Add(day))
	k := newKey(t)
	chain := ca.Certify(t, k.private.Public(), "release@acme.example", now.Add(-time.Hour), now.Add(time.Hour))
	s := NewSigner(k)
	if err := s.Certified([]byte(chain)); err != nil {
		t.Fatal(err)
	}
	s.Timestamped(one, "http://one.example")
	s.Timestamped(two, "http://two.example")
	b, err := s.Sign(t.Context(), releaseOf(model))
	if err != nil {
		t.Fatal(err)
	}
	trust := parse(t, file(certified("release", "authority: acme, san: release@acme.example", ""),
		"authorities:\n"+authorityEntry("acme", "certificates", ca.Root())+authorityEntry("one", "timestamps", one.PEM())+authorityEntry("two", "timestamps", two.PEM())))
	// What two saw existed when the first of them saw it.
	if v, err := Bundle(b, model, trust, moved(now.Add(500*day))); err != nil || v.Signed.Authority != "two" {
		t.Errorf("%+v, %v", v, err)
	}
	if err := NewSigner(newKey(t)).Certified([]byte(chain)); err == nil {
		t.Error("the certificate of another key was taken")
	}
	if err := NewSigner(k).Certified([]byte("hello")); err == nil {
		t.Error("no certificate was taken for one")
	}
}

// Keys that openssl made.
func TestOpenSSLKeys(t *testing.T) {
	k := newKey(t)
	der, err := x509.MarshalECPrivateKey(k.private)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := LoadKey(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil); err != nil || back.Hint() != k.Hint() {
		t.Errorf("SEC 1: %v", err)
	}
	if _, err := LoadKey(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}), nil); err == nil || !strings.Contains(err.Error(), "openssl pkcs8") {
		t.Errorf("an encrypted PKCS #8 key: %v", err)
	}
}

// Signing with a key asks nobody: not even for an address.
func TestSignsWithoutNetwork(t *testing.T) {
	old := http.DefaultTransport
	http.DefaultTransport = offline{t}
	defer func() { http.DefaultTransport = old }()
	k := newKey(t)
	if _, err := SignStatement(t.Context(), k, releaseOf(model)); err != nil {
		t.Fatal(err)
	}
}

// The status list: who may sign it, and for how long it is believed.
func TestStatusList(t *testing.T) {
	k, other := newKey(t), newKey(t)
	trust := trustOf(t, entry("registry", k, "", Withdrawal), entry("other", other, "", Release))
	list := attest.StatusList{Version: 1, Issuer: "assay.log/x", LogSize: 7, Validity: attest.Validity{NotBefore: now, NotAfter: now.Add(12 * time.Hour)},
		Withdrawn: []attest.StatusEntry{{Digest: string(model), Since: now}}}
	raw, err := SignStatusList(k, list)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseStatus(raw, trust, here)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.List.Find(model); !ok || s.Identity != "registry" {
		t.Errorf("%+v", s)
	}
	if _, ok := s.List.Find(digest.FromString("x")); ok {
		t.Error("something is listed that is not")
	}
	byOther, err := SignStatusList(other, list)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		raw   []byte
		trust *Trust
		c     Context
		code  string
	}{
		"yesterday's":             {raw, trust, moved(now.Add(24 * time.Hour)), CodeStatusStale},
		"at the end":              {raw, trust, moved(now.Add(12 * time.Hour)), CodeStatusStale},
		"tomorrow's":              {raw, trust, moved(now.Add(-time.Hour)), CodeStatusStale},
		"by somebody else":        {byOther, trust, here, CodeRole},
		"by nobody":               {raw, NoTrust(), here, CodeUnknownKey},
		"in another repository":   {raw, trust, Context{Repository: "other/x", Now: now}, CodeRepository},
		"a statement":             {signed(t, k, withdrawal(model)), trust, here, CodeStatusInvalid},
		"nothing":                 {[]byte("{}"), trust, here, CodeStatusInvalid},
		"duplicate keys":          {[]byte(strings.Replace(string(raw), `{"`, `{"payload":"","`, 1)), trust, here, CodeStatusInvalid},
		"by a key that has ended": {raw, trustOf(t, entry("registry", k, "  notAfter: 2026-02-01T00:00:00Z\n", Withdrawal)), here, CodeWindow},
	} {
		_, err := ParseStatus(tc.raw, tc.trust, tc.c)
		if err == nil {
			t.Errorf("%s is believed", name)
			continue
		}
		wantCode(t, err, tc.code)
	}
	for name, edit := range map[string]func(l *attest.StatusList){
		"out of order": func(l *attest.StatusList) { l.Withdrawn = append(l.Withdrawn, l.Withdrawn[0]) },
		"no issuer":    func(l *attest.StatusList) { l.Issuer = "" },
		"no end":       func(l *attest.StatusList) { l.Validity.NotAfter = time.Time{} },
		"no digest":    func(l *attest.StatusList) { l.Withdrawn = []attest.StatusEntry{{Digest: "x"}} },
	} {
		l := list
		l.Withdrawn = append([]attest.StatusEntry{}, list.Withdrawn...)
		edit(&l)
		if _, err := SignStatusList(k, l); err == nil {
			t.Errorf("%s was signed", name)
		}
	}
}

// An approval's person is the one whose key signs.
func TestApprovalNamesItsSigner(t *testing.T) {
	k := newKey(t)
	approval := func(person string) []byte {
		raw, err := attest.NewStatement(model, attest.Approval{Person: person, NameHash: "ab", Meaning: attest.MeaningApproval, Reason: "ok", ApprovedAt: now})
		if err != nil {
			t.Fatal(err)
		}
		return signed(t, k, raw)
	}
	trust := trustOf(t, entry("ann-2026", k, "  holder: ann\n", Approval))
	if v, err := Bundle(approval("ann"), model, trust, here); err != nil || v.Holder != "ann" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, person := range []string{"bob", "ann-2026"} {
		_, err := Bundle(approval(person), model, trust, here)
		wantCode(t, err, CodePerson)
	}
}

// What cosign before version 3 wrote.
func TestLegacyForms(t *testing.T) {
	k, other := newKey(t), newKey(t)
	trust := trustOf(t, entry("team", k, "", Release, Provenance))
	payload := []byte(`{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"` + string(model) + `"},"type":"cosign container image signature"},"optional":null}`)
	sign := func(k *Key, message []byte) string {
		_, sig, err := k.sign(message)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(sig)
	}
	for name, tc := range map[string]struct {
		payload []byte
		sig     string
		subject digest.Digest
		code    string
	}{
		"good":             {payload, sign(k, payload), model, ""},
		"another key":      {payload, sign(other, payload), model, CodeUnknownKey},
		"no signature":     {payload, "", model, CodeBundleInvalid},
		"another subject":  {payload, sign(k, payload), digest.FromString("x"), CodeSubject},
		"another type":     {[]byte(strings.Replace(string(payload), "cosign container", "some", 1)), "", model, CodePredicate},
		"duplicate fields": {[]byte(strings.Replace(string(payload), `"type"`, `"type":"x","type"`, 1)), "", model, CodeStatement},
	} {
		if tc.sig == "" && tc.code != CodeBundleInvalid {
			tc.sig = sign(k, tc.payload)
		}
		v, err := simpleSigning(tc.payload, map[string]string{annotationSignature: tc.sig}, tc.subject, trust, here)
		if tc.code != "" {
			wantCode(t, err, tc.code)
		} else if err != nil || v.Role != Release || v.Statement.PredicateType != attest.PredicateSignature {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	_, err := simpleSigning(payload, map[string]string{annotationSignature: sign(other, payload), annotationCertificate: "-----BEGIN CERTIFICATE-----"}, model, trust, here)
	wantCode(t, err, CodeCertificate)
	for tag, want := range map[string]bool{
		"sha256-" + model.Encoded() + ".sig": true, "sha256-" + model.Encoded() + ".att": true, "sha256-" + model.Encoded(): false,
		"sha256-" + model.Encoded() + ".sbom": false, "latest": false,
	} {
		if d, ok := LegacyTag(tag); ok != want || ok && d != model {
			t.Errorf("%s: %s, %v", tag, d, ok)
		}
	}
}

// cosign v3 verifies what was signed with a key and a timestamp of a local
// authority: signed by us without a registry, as a blob's attestation.
func TestCosignVerifiesTimestamps(t *testing.T) {
	cosign := tool(t, "cosign")
	at := time.Now()
	tsa := verifytest.NewTSA(t, at, at.Add(-day), at.Add(day))
	k := newKey(t)
	s := NewSigner(k)
	s.Timestamped(tsa, "http://tsa.example")
	dir := t.TempDir()
	blob := []byte("a model")
	b, err := s.Sign(t.Context(), releaseOf(digest.FromBytes(blob)))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"blob": blob, "bundle": b, "key.pub": k.PublicPEM(), "root.json": []byte(tsa.TrustedRoot(t))} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(cosign, "verify-blob-attestation", "--key", "key.pub", "--bundle", "bundle", "--trusted-root", "root.json", "--use-signed-timestamps", "--insecure-ignore-tlog=true",
		"--type", attest.PredicateSignature, "blob")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("cosign: %v\n%s", err, out)
	}
}
