package verify

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/verifytest"
)

const day = 24 * time.Hour

func indent(text string) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}

// file puts a trust file together; authorities and quorums are whole entries.
func file(identities, rest string) []byte {
	return []byte("version: 1\nidentities:\n" + identities + rest)
}

func authorityEntry(id, kind, text string) string {
	return fmt.Sprintf("- id: %s\n  %s: |\n    %s\n", id, kind, indent(text))
}

func certified(id, certificate, extra string) string {
	return fmt.Sprintf("- id: %s\n  roles: [release]\n  repositories: ['credit/*']\n  certificate: {%s}\n%s", id, certificate, extra)
}

func parse(t testing.TB, raw []byte) *Trust {
	t.Helper()
	trust, err := ParseTrust(raw)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

// moved is the context of a question that is asked at a time.
func moved(at time.Time) Context { return Context{Repository: "credit/scorer", Now: at} }

// A private authority's certificates, under a moved clock: before, inside and
// after the certificate's window, with each sort of evidence of time.
func TestPrivateAuthority(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	ca := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day))
	s := ca.Issue(t, "release@acme.example", now.Add(-day), now.Add(day))
	tsa := verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	stranger := verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	identity := certified("release", "authority: acme, san: release@acme.example", "")
	trust := parse(t, file(identity, "authorities:\n"+authorityEntry("acme", "certificates", ca.Root())+authorityEntry("clock", "timestamps", tsa.PEM())))
	plain, stamped := s.Sign(t, releaseOf(model)), s.Sign(t, releaseOf(model), tsa)
	strange := s.Sign(t, releaseOf(model), stranger)
	both := s.Sign(t, releaseOf(model), stranger, tsa)
	for name, tc := range map[string]struct {
		bundle []byte
		c      Context
		code   string
		by     string
	}{
		"inside":                    {plain, moved(now), "", NoTime},
		"before":                    {plain, moved(now.Add(-2 * day)), CodeWindow, ""},
		"after":                     {plain, moved(now.Add(2 * day)), CodeWindow, ""},
		"after, admitted inside":    {plain, Context{Repository: "credit/scorer", Now: now.Add(50 * day), AdmittedAt: now}, "", ByLog},
		"inside, admitted after":    {plain, Context{Repository: "credit/scorer", Now: now, AdmittedAt: now.Add(2 * day)}, CodeWindow, ""},
		"after, timestamped inside": {stamped, moved(now.Add(2 * day)), "", ByTimestamp},
		"after the authorities' own certificates": {stamped, moved(now.Add(5000 * day)), "", ByTimestamp},
		"admitted after, timestamped inside":      {stamped, Context{Repository: "credit/scorer", Now: now.Add(50 * day), AdmittedAt: now.Add(40 * day)}, "", ByTimestamp},
		"a timestamp from the future":             {stamped, moved(now.Add(-time.Hour)), CodeWindow, ""},
		"a clock that is a little slow":           {stamped, moved(now.Add(-time.Minute)), "", ByTimestamp},
		"a strange timestamp is none, inside":     {strange, moved(now), "", NoTime},
		"a strange timestamp is none, after":      {strange, moved(now.Add(2 * day)), CodeWindow, ""},
		"a strange timestamp beside a known":      {both, moved(now.Add(2 * day)), "", ByTimestamp},
	} {
		v, err := Bundle(tc.bundle, model, trust, tc.c)
		switch {
		case tc.code != "":
			if err == nil {
				t.Errorf("%s: verified, %v", name, v.Signed)
				continue
			}
			wantCode(t, err, tc.code)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case v.Signed.By != tc.by || v.Identity != "release" || v.Holder != "release":
			t.Errorf("%s: %+v", name, v)
		}
	}

	other := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day))
	chainWithRoot := *s
	chainWithRoot.Chain = ca.WithRoot(s)
	alone := *s
	alone.Chain = s.Chain[:1]
	for name, tc := range map[string]struct {
		bundle  []byte
		subject digest.Digest
		code    string
	}{
		"another authority's":        {other.Issue(t, "release@acme.example", now.Add(-day), now.Add(day)).Sign(t, releaseOf(model)), model, CodeCertificate},
		"another owner":              {ca.Issue(t, "intern@acme.example", now.Add(-day), now.Add(day)).Sign(t, releaseOf(model)), model, CodeIdentity},
		"a certificate for servers":  {ca.Issue(t, "release@acme.example", now.Add(-day), now.Add(day), x509.ExtKeyUsageServerAuth).Sign(t, releaseOf(model)), model, CodeCertificate},
		"another subject":            {plain, digest.FromString("other"), CodeSubject},
		"an intermediate is missing": {alone.Sign(t, releaseOf(model)), model, CodeCertificate},
		"the root inside the chain":  {rawChain(t, plain, chainWithRoot.Chain), model, CodeBundleInvalid},
		"somebody else's key":        {rawChain(t, plain, ca.Issue(t, "release@acme.example", now.Add(-day), now.Add(day)).Chain), model, CodeSignature},
	} {
		_, err := Bundle(tc.bundle, tc.subject, trust, moved(now))
		if err == nil {
			t.Errorf("%s verifies", name)
			continue
		}
		wantCode(t, err, tc.code)
	}
	// A trust file without authorities, and one with a pattern.
	_, err := Bundle(plain, model, NoTrust(), moved(now))
	wantCode(t, err, CodeCertificate)
	for pattern, code := range map[string]string{`.*@acme\.example`: "", `release@acme`: CodeIdentity, `RELEASE@acme\.example`: CodeIdentity} {
		trust := parse(t, file(certified("release", "authority: acme, sanPattern: '"+pattern+"'", ""), "authorities:\n"+authorityEntry("acme", "certificates", ca.Root())))
		if _, err := Bundle(plain, model, trust, moved(now)); code == "" && err != nil {
			t.Errorf("%s: %v", pattern, err)
		} else if code != "" {
			wantCode(t, err, code)
		}
	}
	// The identity's window is asked besides the certificate's.
	narrow := parse(t, file(certified("release", "authority: acme, san: release@acme.example", "  distrustAfter: "+now.Add(-time.Hour).Format(time.RFC3339)+"\n"), "authorities:\n"+authorityEntry("acme", "certificates", ca.Root())))
	_, err = Bundle(plain, model, narrow, moved(now))
	wantCode(t, err, CodeWindow)
}

// rawChain puts another chain into a bundle.
func rawChain(t testing.TB, raw []byte, chain [][]byte) []byte {
	t.Helper()
	return edited(t, raw, func(b map[string]any) {
		var list []any
		for _, der := range chain {
			list = append(list, map[string]any{"rawBytes": der})
		}
		b["verificationMaterial"].(map[string]any)["x509CertificateChain"] = map[string]any{"certificates": list}
	})
}

func edited(t testing.TB, raw []byte, edit func(b map[string]any)) []byte {
	t.Helper()
	var b map[string]any
	if err := json.Unmarshal(raw, &b); err != nil {
		t.Fatal(err)
	}
	edit(b)
	out, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

const issuer = "https://issuer.example"

func TestKeyless(t *testing.T) {
	s := verifytest.NewSigstore(t)
	identity := certified("ci", "authority: acme, san: ci@acme.example, issuer: "+issuer, "")
	trust := parse(t, file(identity, "authorities:\n"+authorityEntry("acme", "trustedRoot", s.TrustedRoot(t, false))))
	withCT := parse(t, file(identity, "authorities:\n"+authorityEntry("acme", "trustedRoot", s.TrustedRoot(t, true))))
	other := parse(t, file(identity, "authorities:\n"+authorityEntry("acme", "trustedRoot", verifytest.NewSigstore(t).TrustedRoot(t, false))))
	at := time.Now()
	for _, v2 := range []bool{false, true} {
		b := s.Keyless(t, "ci@acme.example", issuer, releaseOf(model), v2)
		material := func(edit func(m map[string]any)) []byte {
			return edited(t, b, func(b map[string]any) { edit(b["verificationMaterial"].(map[string]any)) })
		}
		v, err := Bundle(b, model, trust, moved(at))
		if err != nil || v.Identity != "ci" || v.Signed.By != ByTimestamp {
			t.Fatalf("Rekor v2 %v: %+v, %v", v2, v, err)
		}
		// Certificates live for minutes, and what they signed for years.
		if _, err := Bundle(b, model, trust, moved(at.Add(5000*day))); err != nil {
			t.Errorf("Rekor v2 %v, years later: %v", v2, err)
		}
		untimed := material(func(m map[string]any) { delete(m, "timestampVerificationData") })
		v, err = Bundle(untimed, model, trust, moved(at))
		if v2 {
			// "Rekor v2 gives no time": a timestamp authority has to.
			wantCode(t, err, CodeTime)
		} else if err != nil || v.Signed.By != ByRekor {
			t.Errorf("Rekor v1 without a timestamp: %+v, %v", v, err)
		}
		foreign := s.Keyless(t, "ci@acme.example", issuer, releaseOf(digest.FromString("other")), v2)
		for name, tc := range map[string]struct {
			bundle  []byte
			subject digest.Digest
			trust   *Trust
			at      time.Time
			code    string
		}{
			"another instance":           {b, model, other, at, CodeRekor},
			"another person":             {s.Keyless(t, "x@acme.example", issuer, releaseOf(model), v2), model, trust, at, CodeIdentity},
			"another issuer":             {s.Keyless(t, "ci@acme.example", "https://evil.example", releaseOf(model), v2), model, trust, at, CodeIdentity},
			"another subject":            {b, digest.FromString("x"), trust, at, CodeSubject},
			"not in the log":             {material(func(m map[string]any) { delete(m, "tlogEntries") }), model, trust, at, CodeRekor},
			"no certificate timestamp":   {b, model, withCT, at, CodeCertificate},
			"asked before it was signed": {b, model, trust, at.Add(-time.Hour), CodeWindow},
			// GHSA-whqx-f9j3-ch6m: the log entry of another artifact.
			"the log entry of another": {material(func(m map[string]any) {
				m["tlogEntries"] = materialOf(t, foreign)["tlogEntries"]
			}), model, trust, at, CodeRekor},
			// GHSA-fx35-mq7g-6g98: a bare key where a certificate has to be.
			"a key instead of the certificate": {material(func(m map[string]any) {
				delete(m, "certificate")
				m["publicKey"] = map[string]any{"hint": "x"}
			}), model, trust, at, CodeUnknownKey},
		} {
			_, err := Bundle(tc.bundle, tc.subject, tc.trust, moved(tc.at))
			if err == nil {
				t.Errorf("Rekor v2 %v: %s verifies", v2, name)
				continue
			}
			var f *Failure
			if !errors.As(err, &f) || f.Code != tc.code {
				t.Errorf("Rekor v2 %v: %s: %v, want %s", v2, name, err, tc.code)
			}
		}
	}
}

func materialOf(t testing.TB, raw []byte) map[string]any {
	t.Helper()
	var b map[string]any
	if err := json.Unmarshal(raw, &b); err != nil {
		t.Fatal(err)
	}
	return b["verificationMaterial"].(map[string]any)
}

// A bundle of the public instance, with a certificate that a transparency log
// has seen, verifies under the public trusted root: the library's own vector.
func TestPublicGood(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/sigstore/sigstore-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "pkg", "testing", "data")
	read := func(name string) []byte {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	trust := parse(t, file(certified("sigstore-js", `authority: public, issuer: "https://token.actions.githubusercontent.com", sanPattern: "https://github.com/sigstore/sigstore-js/.*"`, ""),
		"authorities:\n"+authorityEntry("public", "trustedRoot", string(read("trusted-roots/public-good.json")))))
	b, err := parseBundle(read("bundles/sigstore.js@2.0.0-provenance.sigstore.json"))
	if err != nil {
		t.Fatal(err)
	}
	const sum = "46d4e2f74c4877316640000a6fdf8a8b59f1e0847667973e9859f774dd31b8f1e0937813b777fb66a2ac67d50540fe34640966eee9fc2ccca387082b4c85cd3c"
	raw, err := hex.DecodeString(sum)
	if err != nil {
		t.Fatal(err)
	}
	s, err := trust.authority("public").publicly(b, sgverify.WithArtifactDigest("sha512", raw), moved(now))
	if err != nil || s.time.By != ByRekor || s.issuer != "https://token.actions.githubusercontent.com" || !strings.HasPrefix(s.san, "https://github.com/sigstore/sigstore-js/") {
		t.Errorf("%+v, %v", s, err)
	}
}

// A key's window is ours to enforce, and a timestamp is the best evidence.
func TestTimestampsOfKeys(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	date := func(name string, d time.Duration) string {
		return "  " + name + ": " + now.Add(d).Format(time.RFC3339) + "\n"
	}
	tsa := verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	k := newKey(t)
	b := verifytest.Stamped(t, releaseOf(model), keypair{k}, tsa)
	plain := signed(t, k, releaseOf(model))
	ended := date("notBefore", -28*day) + date("notAfter", day)
	lost := date("distrustAfter", day)
	begins := date("notBefore", 5*day)
	admitted := now.Add(30 * day)
	for name, tc := range map[string]struct {
		window string
		bundle []byte
		c      Context
		code   string
	}{
		"expired key, signed before, with a timestamp":      {ended, b, Context{Now: admitted, AdmittedAt: admitted}, ""},
		"expired key, signed before, without a timestamp":   {ended, plain, Context{Now: admitted, AdmittedAt: admitted}, CodeWindow},
		"lost key, timestamped before":                      {lost, b, Context{Now: admitted}, ""},
		"lost key, without a timestamp":                     {lost, plain, Context{Now: now}, CodeWindow},
		"lost key, admitted before it was":                  {lost, plain, Context{Now: admitted, AdmittedAt: now}, ""},
		"before the key's time, though admitted afterwards": {begins, b, Context{Now: admitted, AdmittedAt: admitted}, CodeWindow},
	} {
		tc.c.Repository = "credit/scorer"
		trust := parse(t, file(entry("team", k, tc.window, Release), "authorities:\n"+authorityEntry("clock", "timestamps", tsa.PEM())))
		_, err := Bundle(tc.bundle, model, trust, tc.c)
		if tc.code == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		} else if tc.code != "" {
			wantCode(t, err, tc.code)
		}
	}
	// After the timestamp authority's certificate has expired, what it stated
	// while it was valid stands; what it states afterwards is nothing.
	late := verifytest.NewTSA(t, now.Add(20*day), now.Add(-10*day), now.Add(10*day))
	trust := parse(t, file(entry("team", k, ended, Release), "authorities:\n"+authorityEntry("clock", "timestamps", tsa.PEM())+authorityEntry("late", "timestamps", late.PEM())))
	if _, err := Bundle(b, model, trust, moved(now.Add(4000*day))); err != nil {
		t.Error(err)
	}
	_, err := Bundle(verifytest.Stamped(t, releaseOf(model), keypair{k}, late), model, trust, moved(now.Add(21*day)))
	wantCode(t, err, CodeWindow)
}

// Old bundle versions (v0.1, v0.2, and the older spelling of v0.3) verify as
// v0.3 does.
func TestOldBundleVersions(t *testing.T) {
	k := newKey(t)
	trust := trustOf(t, entry("team", k, "", Release))
	b := signed(t, k, releaseOf(model))
	for _, mediaType := range []string{
		"application/vnd.dev.sigstore.bundle+json;version=0.1", "application/vnd.dev.sigstore.bundle+json;version=0.2", "application/vnd.dev.sigstore.bundle+json;version=0.3",
	} {
		old := edited(t, b, func(b map[string]any) { b["mediaType"] = mediaType })
		if _, err := Bundle(old, model, trust, here); err != nil {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
	for _, mediaType := range []string{"application/vnd.dev.sigstore.bundle.v0.4+json", "application/json", ""} {
		_, err := Bundle(edited(t, b, func(b map[string]any) { b["mediaType"] = mediaType }), model, trust, here)
		wantCode(t, err, CodeBundleInvalid)
	}
	s := verifytest.NewSigstore(t)
	keyless := parse(t, file(certified("ci", "authority: acme, san: ci@acme.example, issuer: "+issuer, ""), "authorities:\n"+authorityEntry("acme", "trustedRoot", s.TrustedRoot(t, false))))
	v3 := s.Keyless(t, "ci@acme.example", issuer, releaseOf(model), false)
	v2 := edited(t, v3, func(b map[string]any) {
		b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.2"
		m := b["verificationMaterial"].(map[string]any)
		m["x509CertificateChain"] = map[string]any{"certificates": []any{m["certificate"]}}
		delete(m, "certificate")
	})
	if _, err := Bundle(v2, model, keyless, moved(time.Now())); err != nil {
		t.Errorf("keyless v0.2: %v", err)
	}
}

// What somebody could send who wants a yes: each has its own reason, and beside
// it is what does verify, so that none is refused for something else.
func TestNegativeSet(t *testing.T) {
	at := time.Now().UTC().Truncate(time.Second)
	k, lab, other, stranger, ended := newKey(t), newKey(t), newKey(t), newKey(t), newKey(t)
	ca := verifytest.NewCA(t, at.Add(-100*day), at.Add(100*day))
	tsa, untrusted := verifytest.NewTSA(t, at.Add(-2*day), at.Add(-10*day), at.Add(10*day)), verifytest.NewTSA(t, at.Add(-2*day), at.Add(-10*day), at.Add(10*day))
	s := verifytest.NewSigstore(t)
	private := ca.Issue(t, "release@acme.example", at.Add(-day), at.Add(day))
	trust := parse(t, file(entry("release", k, "", Release)+entry("lab", lab, "", Conformance)+entry("other", other, "", Approval)+
		entry("ended", ended, "  notAfter: "+at.Add(-day).Format(time.RFC3339)+"\n", Release)+
		certified("acme", "authority: acme, san: release@acme.example", "")+certified("ci", "authority: sigstore, san: ci@acme.example, issuer: "+issuer, ""),
		"authorities:\n"+authorityEntry("acme", "certificates", ca.Root())+authorityEntry("clock", "timestamps", tsa.PEM())+authorityEntry("sigstore", "trustedRoot", s.TrustedRoot(t, false))))
	good := signed(t, k, releaseOf(model))
	keyless := s.Keyless(t, "ci@acme.example", issuer, releaseOf(model), false)
	statement := func(predicateType string, predicate any, subjects ...digest.Digest) []byte {
		m := map[string]any{"_type": attest.StatementTypeV1, "predicateType": predicateType, "predicate": predicate}
		var list []any
		for _, d := range subjects {
			list = append(list, map[string]any{"digest": attest.Digests(d)})
		}
		m["subject"] = list
		raw, err := attest.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	testResult := func(result string) []byte {
		return statement(attest.PredicateTestResult, map[string]any{"result": result, "configuration": []any{}}, model)
	}
	// Signed as it is, whatever it is: our own signer refuses some of these.
	raw := func(payload []byte) []byte { return verifytest.Stamped(t, payload, keypair{k}) }
	dsse := func(edit func(e map[string]any)) []byte {
		return edited(t, good, func(b map[string]any) { edit(b["dsseEnvelope"].(map[string]any)) })
	}
	material := func(bundle []byte, edit func(m map[string]any)) []byte {
		return edited(t, bundle, func(b map[string]any) { edit(b["verificationMaterial"].(map[string]any)) })
	}
	hint := func(bundle []byte, hint string) []byte {
		return material(bundle, func(m map[string]any) { m["publicKey"] = map[string]any{"hint": hint} })
	}
	version := func(bundle []byte, v string) []byte {
		return edited(t, bundle, func(b map[string]any) { b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=" + v })
	}
	chained := edited(t, keyless, func(b map[string]any) { // the form of v0.1 and v0.2
		m := b["verificationMaterial"].(map[string]any)
		m["x509CertificateChain"] = map[string]any{"certificates": []any{m["certificate"]}}
		delete(m, "certificate")
	})
	entryless := func(bundle []byte, member string) []byte {
		return material(bundle, func(m map[string]any) { delete(m["tlogEntries"].([]any)[0].(map[string]any), member) })
	}
	twice := func(raw []byte, member string) []byte {
		return []byte(strings.Replace(string(raw), `"`+member+`"`, `"`+member+`":{},"`+member+`"`, 1))
	}
	for _, tc := range []struct {
		name   string
		bundle []byte
		code   string // "" if it verifies
	}{
		{"FAILED evidence under the release key", signed(t, k, testResult("FAILED")), CodeRole},
		{"FAILED evidence under the conformance key", signed(t, lab, testResult("FAILED")), CodeNegative},
		{"WARNED evidence", signed(t, lab, testResult("WARNED")), CodeNegative},
		{"evidence without a result", signed(t, lab, statement(attest.PredicateTestResult, map[string]any{}, model)), CodeNegative},
		{"PASSED evidence", signed(t, lab, testResult("PASSED")), ""},

		{"wrong predicate", signed(t, k, statement("https://example.com/whatever/v1", map[string]any{}, model)), CodePredicate},
		{"wrong predicate, of another role", signed(t, k, withdrawal(model)), CodeRole},
		{"wrong predicate, of a refusal", signed(t, lab, statement(attest.PredicateRefusal, map[string]any{}, model)), CodeStatement},

		{"subject swap", signed(t, k, releaseOf(digest.FromString("other"))), CodeSubject},
		{"subject swap, in the payload alone", dsse(func(e map[string]any) { e["payload"] = releaseOf(digest.FromString("other")) }), CodeUnknownKey},
		{"subject swap, with a certificate", private.Sign(t, releaseOf(digest.FromString("other"))), CodeSubject},
		{"subject swap, keyless", s.Keyless(t, "ci@acme.example", issuer, releaseOf(digest.FromString("other")), true), CodeSubject},
		{"subject swap, over the manifest itself", manifestSigned(t, keypair{k}, "other"), CodeSubject},
		{"over the manifest itself", manifestSigned(t, keypair{k}, "model"), ""},

		{"extra subject", func() []byte {
			p, err := attest.NewStatement(model, attest.Approval{Person: "other", NameHash: "ab", Meaning: "approval", Reason: "ok", ApprovedAt: now})
			if err != nil {
				t.Fatal(err)
			}
			return signed(t, other, edited(t, p, func(m map[string]any) {
				m["subject"] = append(m["subject"].([]any), map[string]any{"digest": attest.Digests(digest.FromString("x"))})
			}))
		}(), CodeSubject},
		{"no subject", raw(statement(attest.PredicateSignature, map[string]any{})), CodeStatement},
		{"too many subjects", raw(statement(attest.PredicateSignature, map[string]any{}, func() []digest.Digest {
			list := make([]digest.Digest, attest.MaxSubjects+1)
			for i := range list {
				list[i] = model
			}
			return list
		}()...)), CodeStatement},

		{"two DSSE signatures", dsse(func(e map[string]any) { e["signatures"] = append(e["signatures"].([]any), e["signatures"].([]any)[0]) }), CodeBundleInvalid},
		{"no DSSE signature", dsse(func(e map[string]any) { e["signatures"] = []any{} }), CodeBundleInvalid},

		{"expired key with a timestamp from before", verifytest.Stamped(t, releaseOf(model), keypair{ended}, tsa), ""},
		{"expired key without a timestamp", signed(t, ended, releaseOf(model)), CodeWindow},
		{"expired key with a stranger's timestamp", verifytest.Stamped(t, releaseOf(model), keypair{ended}, untrusted), CodeWindow},

		{"bundle v0.1", version(good, "0.1"), ""},
		{"bundle v0.2", version(good, "0.2"), ""},
		{"bundle v0.1, keyless", version(chained, "0.1"), ""},
		{"bundle v0.1, keyless, without a promise", version(entryless(chained, "inclusionPromise"), "0.1"), CodeBundleInvalid},
		{"bundle v0.2, keyless, without a proof", version(entryless(chained, "inclusionProof"), "0.2"), CodeBundleInvalid},
		{"bundle v0.3, keyless, without a proof", entryless(keyless, "inclusionProof"), CodeBundleInvalid},
		{"bundle v0.4", edited(t, good, func(b map[string]any) { b["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.4+json" }), CodeBundleInvalid},

		{"certificate chain", private.Sign(t, releaseOf(model)), ""},
		{"certificate chain with the root inside", rawChain(t, private.Sign(t, releaseOf(model)), ca.WithRoot(private)), CodeBundleInvalid},

		{"hint of another key that is trusted", hint(good, other.Hint()), ""}, // it says which to try first
		{"hint of nobody's key", hint(good, "x"), ""},
		{"hint of a trusted key over a stranger's signature", hint(signed(t, stranger, releaseOf(model)), k.Hint()), CodeUnknownKey},

		{"duplicate JSON keys in the bundle", twice(good, "dsseEnvelope"), CodeBundleInvalid},
		{"duplicate JSON keys in the envelope", twice(good, "payloadType"), CodeBundleInvalid},
		{"duplicate JSON keys in the statement", raw(twice(releaseOf(model), "predicate")), CodeStatement},
		{"duplicate JSON keys in the predicate", raw([]byte(strings.Replace(string(releaseOf(model)), `"predicate":{}`, `"predicate":{"a":1,"a":2}`, 1))), CodeStatement},
		{"another payload type", dsse(func(e map[string]any) { e["payloadType"] = "text/plain" }), CodeStatement},
		{"a field nobody knows", edited(t, good, func(b map[string]any) { b["critical"] = true }), CodeBundleInvalid},
		{"a bundle of 200 MB", make([]byte, 200<<20), CodeTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := Bundle(tc.bundle, model, trust, moved(at))
			var f *Failure
			switch {
			case tc.code == "" && err != nil:
				t.Error(err)
			case tc.code != "" && (!errors.As(err, &f) || f.Code != tc.code || f.Message == ""):
				t.Errorf("%+v, %v, want %s", v, err, tc.code)
			}
		})
	}
}

// Take any field out of a bundle, or make it another, and it does not verify,
// or says the same by the same signer: keys, certificates, logs, timestamps.
func TestEveryFieldOfABundleCounts(t *testing.T) {
	k := newKey(t)
	s := verifytest.NewSigstore(t)
	at := time.Now()
	tsa := verifytest.NewTSA(t, at, at.Add(-10*day), at.Add(10*day))
	ca := verifytest.NewCA(t, at.Add(-100*day), at.Add(100*day))
	trust := parse(t, file(entry("team", k, "", Release)+certified("ci", "authority: acme, san: ci@acme.example, issuer: "+issuer, "")+certified("private", "authority: private, san: release@acme.example", ""),
		"authorities:\n"+authorityEntry("acme", "trustedRoot", s.TrustedRoot(t, false))+authorityEntry("clock", "timestamps", tsa.PEM())+authorityEntry("private", "certificates", ca.Root())))
	for name, tc := range map[string]struct {
		bundle []byte
		c      Context
	}{
		"key and timestamp": {verifytest.Stamped(t, releaseOf(model), keypair{k}, tsa), moved(at)},
		"keyless, Rekor v1": {s.Keyless(t, "ci@acme.example", issuer, releaseOf(model), false), moved(at)},
		"keyless, Rekor v2": {s.Keyless(t, "ci@acme.example", issuer, releaseOf(model), true), moved(at)},
		"key, v0.1":         {edited(t, signed(t, k, releaseOf(model)), func(b map[string]any) { b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1" }), moved(at)},
		"private authority": {ca.Issue(t, "release@acme.example", at.Add(-day), at.Add(day)).Sign(t, releaseOf(model), tsa), moved(at)},
		"keyless, v0.2": {edited(t, s.Keyless(t, "ci@acme.example", issuer, releaseOf(model), false), func(b map[string]any) {
			b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.2"
			m := b["verificationMaterial"].(map[string]any)
			m["x509CertificateChain"] = map[string]any{"certificates": []any{m["certificate"]}}
			delete(m, "certificate")
		}), moved(at)},
	} {
		want, err := Bundle(tc.bundle, model, trust, tc.c)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n, refused := 0, 0
		mutations(t, tc.bundle, func(path string, mutant []byte) {
			n++
			v, err := Bundle(mutant, model, trust, tc.c)
			if err != nil {
				refused++
				var f *Failure
				if !errors.As(err, &f) {
					t.Errorf("%s, %s: %v has no code", name, path, err)
				}
				return
			}
			if string(v.Payload) != string(want.Payload) || v.Identity != want.Identity {
				t.Errorf("%s, %s: it says %s by %s", name, path, v.Payload, v.Identity)
			}
		})
		if n < 10 || refused < n/2 {
			t.Errorf("%s: of %d mutants %d were refused", name, n, refused)
		}
	}
}

// The same of what is signed in an envelope of its own: status lists and
// refusals.
func TestEveryFieldOfAnEnvelopeCounts(t *testing.T) {
	k := newKey(t)
	trust := trustOf(t, entry("team", k, "", Conformance, Withdrawal))
	list, err := SignStatusList(k, attest.StatusList{Version: 1, Issuer: "x", Validity: attest.Validity{NotBefore: now, NotAfter: now.Add(time.Hour)}, Withdrawn: []attest.StatusEntry{{Digest: string(model), Since: now}}})
	if err != nil {
		t.Fatal(err)
	}
	replay := digest.FromString("replay")
	refusal, err := SignRefusal(k, refusalStatement(t, replay))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		raw    []byte
		verify func([]byte) (said string, err error)
	}{
		"status list": {list, func(raw []byte) (string, error) {
			s, err := ParseStatus(raw, trust, here)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%+v %s", s.List, s.Identity), nil
		}},
		"refusal": {refusal, func(raw []byte) (string, error) {
			v, err := Refusal(raw, replay, trust, here)
			if err != nil {
				return "", err
			}
			return string(v.Payload) + v.Identity, nil
		}},
	} {
		want, err := tc.verify(tc.raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n, refused := 0, 0
		mutations(t, tc.raw, func(path string, mutant []byte) {
			n++
			got, err := tc.verify(mutant)
			var f *Failure
			switch {
			case err == nil && got != want:
				t.Errorf("%s, %s: it says %s", name, path, got)
			case err != nil && !errors.As(err, &f):
				t.Errorf("%s, %s: %v has no code", name, path, err)
			case err != nil:
				refused++
			}
		})
		if n < 10 || refused < n/2 {
			t.Errorf("%s: of %d mutants %d were refused", name, n, refused)
		}
	}
}

// mutations calls fn with each change of one member of a JSON document:
// removed, emptied, turned, of another type.
func mutations(t testing.TB, raw []byte, fn func(path string, mutant []byte)) {
	t.Helper()
	var doc any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	emit := func(path string) {
		out, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		fn(path, out)
	}
	var walk func(path string, v any, set func(any))
	walk = func(path string, v any, set func(any)) {
		others := []any{nil, "AAAA", 7, map[string]any{}}
		if s, ok := v.(string); ok && len(s) > 8 {
			turned := []byte(s)
			i := len(s) / 2
			turned[i] = map[bool]byte{true: 'A', false: 'B'}[turned[i] != 'A']
			others = append(others, string(turned), s[:len(s)-4])
		}
		for i, o := range others {
			set(o)
			emit(fmt.Sprintf("%s, change %d", path, i))
		}
		set(v)
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				delete(v, name)
				emit(path + "." + name + " removed")
				v[name] = member
				walk(path+"."+name, member, func(x any) { v[name] = x })
			}
		case []any:
			for i, item := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), item, func(x any) { v[i] = x })
			}
		}
	}
	walk("$", doc, func(x any) { doc = x })
}

func TestQuorumsAndHolders(t *testing.T) {
	a, b := newKey(t), newKey(t)
	quorum := "quorums:\n- {role: approval, repositories: ['credit/*'], atLeast: 2}\n"
	trust := parse(t, file(entry("ann", a, "", Approval)+entry("bob", b, "", Approval), quorum))
	if n := trust.Quorum(Approval, "credit/x"); n != 2 {
		t.Errorf("quorum is %d", n)
	}
	if trust.Quorum(Approval, "other/x") != 1 || trust.Quorum(Release, "credit/x") != 1 {
		t.Error("a quorum where none was asked for")
	}
	for name, raw := range map[string][]byte{
		"one holder with two keys":   file(entry("ann", a, "  holder: ann\n", Approval)+entry("ann2", b, "  holder: ann\n", Approval), quorum),
		"one key under two ids":      file(entry("ann", a, "", Approval)+entry("ann2", a, "", Approval), quorum),
		"one account of two holders": file(entry("ann", a, "  accounts: ['user:00000000000000aa']\n", Approval)+entry("bob", b, "  accounts: ['user:00000000000000aa']\n", Approval), ""),
		"an account that is a name":  file(entry("ann", a, "  accounts: [ann]\n", Approval), ""),
		"one key of two holders":     file(entry("ann", a, "  holder: ann\n", Approval)+entry("ann2", a, "  holder: bob\n", Approval), ""),
		"nobody with the role":       file(entry("ann", a, "", Release)+entry("bob", b, "", Approval), quorum),
		"a quorum of one":            file(entry("ann", a, "", Approval), "quorums:\n- {role: approval, repositories: ['**'], atLeast: 1}\n"),
		"a quorum for withdrawals":   file(entry("ann", a, "", Withdrawal)+entry("bob", b, "", Withdrawal), "quorums:\n- {role: withdrawal, repositories: ['**'], atLeast: 2}\n"),
		"a quorum nowhere":           file(entry("ann", a, "", Approval)+entry("bob", b, "", Approval), "quorums:\n- {role: approval, atLeast: 2}\n"),
		"an unknown authority":       file(certified("x", "authority: none, san: x", ""), ""),
		"kms without its key":        file("- {id: x, kms: 'awskms:///x', roles: [release], repositories: ['**']}\n", ""),
		"neither key nor anything":   file("- {id: x, roles: [release], repositories: ['**']}\n", ""),
		"key and certificate":        file(entry("x", a, "  certificate: {authority: a, san: x}\n", Release), "authorities:\n"+authorityEntry("a", "certificates", verifytest.NewCA(t, now, now.Add(day)).Root())),
		"an issuer of nobody":        file(certified("x", "authority: a, san: x, issuer: y", ""), "authorities:\n"+authorityEntry("a", "certificates", verifytest.NewCA(t, now, now.Add(day)).Root())),
		"no name at all":             file(certified("x", "authority: a", ""), "authorities:\n"+authorityEntry("a", "certificates", verifytest.NewCA(t, now, now.Add(day)).Root())),
		"a bad pattern":              file(certified("x", "authority: a, sanPattern: '('", ""), "authorities:\n"+authorityEntry("a", "certificates", verifytest.NewCA(t, now, now.Add(day)).Root())),
		"a clock that issues":        file(certified("x", "authority: a, san: x", ""), "authorities:\n"+authorityEntry("a", "timestamps", verifytest.NewTSA(t, now, now, now.Add(day)).PEM())),
		"no issuer for Fulcio's":     file(certified("x", "authority: a, san: x", ""), "authorities:\n"+authorityEntry("a", "trustedRoot", verifytest.NewSigstore(t).TrustedRoot(t, false))),
		"an authority that is none":  file(entry("x", a, "", Release), "authorities:\n- {id: a}\n"),
		"two in one":                 file(entry("x", a, "", Release), "authorities:\n- {id: a, certificates: x, timestamps: y}\n"),
		"certificates that are not":  file(entry("x", a, "", Release), "authorities:\n- {id: a, certificates: hello}\n"),
		"a root that is none":        file(entry("x", a, "", Release), "authorities:\n- {id: a, trustedRoot: '{}'}\n"),
		"the same authority twice": file(entry("x", a, "", Release), "authorities:\n"+authorityEntry("a", "certificates", verifytest.NewCA(t, now, now.Add(day)).Root())+
			authorityEntry("a", "certificates", verifytest.NewCA(t, now, now.Add(day)).Root())),
	} {
		if _, err := ParseTrust(raw); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	// Rotation: two keys of one holder, and one of two identities that share a
	// key may say it although the first may not.
	rotated := parse(t, file(entry("old", a, "  holder: team\n  notAfter: 2026-02-01T00:00:00Z\n", Release)+entry("new", b, "  holder: team\n  notBefore: 2026-01-15T00:00:00Z\n", Release), ""))
	if v, err := Bundle(signed(t, b, releaseOf(model)), model, rotated, here); err != nil || v.Holder != "team" || v.Identity != "new" {
		t.Errorf("%+v, %v", v, err)
	}
	_, err := Bundle(signed(t, a, releaseOf(model)), model, rotated, here)
	wantCode(t, err, CodeWindow)
	shared := parse(t, file(entry("approver", a, "", Approval)+entry("releaser", a, "", Release), ""))
	if v, err := Bundle(signed(t, a, releaseOf(model)), model, shared, here); err != nil || v.Identity != "releaser" || v.Holder != "approver" {
		t.Errorf("%+v, %v", v, err)
	}
}

// A trust file as it was written before there were authorities means what it
// meant: its digest is in facts, decisions and the log.
func TestTrustFileKeepsItsDigest(t *testing.T) {
	const old = `version: 1
identities:
- id: team
  publicKey: |
    -----BEGIN PUBLIC KEY-----
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf1HhPHuuxzMRPhHlbcF8vXKUDYHV
    lh6Y2fcS1dlnE/UXGhTmwy9sFXmoZDJ3FqxhYIXdXSIzSVdNQAZZhkCdIA==
    -----END PUBLIC KEY-----
  roles: [release, provenance]
  repositories: ["credit/*"]
  notBefore: 2026-01-01T00:00:00Z
`
	k := newKey(t)
	raw := strings.Replace(old, old[strings.Index(old, "    -----BEGIN"):strings.Index(old, "  roles:")], "    "+indent(string(k.PublicPEM()))+"\n", 1)
	trust := parse(t, []byte(raw))
	canonical, err := attest.Marshal(map[string]any{"version": 1, "identities": []any{map[string]any{
		"id": "team", "publicKey": string(k.PublicPEM()), "roles": []string{"release", "provenance"}, "repositories": []string{"credit/*"}, "notBefore": "2026-01-01T00:00:00Z",
	}}})
	if err != nil || trust.Digest() != digest.FromBytes(canonical) {
		t.Errorf("digest %s, want that of %s (%v)", trust.Digest(), canonical, err)
	}
}

// A large bundle is refused before it is parsed, and one that no key verifies
// is hashed once and not once for every key.
func TestHostileBundlesAreCheap(t *testing.T) {
	var entries strings.Builder
	for i := range 100 {
		entries.WriteString(entry(fmt.Sprintf("k%d", i), newKey(t), "", Release))
	}
	trust := parse(t, file(entries.String(), ""))
	s := attest.Statement{Type: attest.StatementTypeV1, PredicateType: attest.PredicateSignature, Predicate: json.RawMessage(`{"x":"` + strings.Repeat("a", 2<<20) + `"}`),
		Subject: []attest.Resource{{Digest: attest.Digests(model)}}}
	raw, err := attest.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	b := signed(t, newKey(t), raw)
	start := time.Now()
	_, err = Bundle(b, model, trust, here)
	wantCode(t, err, CodeUnknownKey)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a bundle of %d bytes took %v", len(b), took)
	}
	_, err = Bundle(make([]byte, 200<<20), model, trust, here)
	wantCode(t, err, CodeTooLarge)
}
