package verify

import (
	"crypto/x509"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/verifytest"
)

// Every window there is, with the clock before it, at its first moment, inside,
// at its last, and after it: the clock is that of whatever evidence of time
// counts.
func TestEveryWindowUnderAMovedClock(t *testing.T) {
	// The library beneath the timestamp authority signs with the real time too,
	// so the windows lie around it.
	base := time.Now().UTC().Truncate(time.Second)
	from, to := base.Add(-2*time.Hour), base.Add(2*time.Hour)
	forever := base.Add(5000 * day)
	k := newKey(t)
	stamp := func(name string, d time.Time) string { return "  " + name + ": " + d.Format(time.RFC3339) + "\n" }
	window := stamp("notBefore", from) + stamp("notAfter", to)
	key := func(extra string, rest string) *Trust { return parse(t, file(entry("team", k, extra, Release), rest)) }
	wide := verifytest.NewCA(t, base.Add(-100*day), base.Add(100*day))
	narrow := verifytest.NewCA(t, from, to)
	clock := func(at time.Time) *verifytest.TSA {
		return verifytest.NewTSA(t, at, base.Add(-100*day), base.Add(100*day))
	}
	timestamps := func(a *verifytest.TSA) string { return authorityEntry("clock", "timestamps", a.PEM()) }
	// keyless signs as Fulcio's customers do, logged by Rekor 1 at a time, or
	// timestamped then.
	keyless := func(ca *verifytest.CA, certFrom, certTo, at time.Time, stamped bool) error {
		who := ca.Keyless(t, "ci@acme.example", issuer, certFrom, certTo)
		opt := sign.BundleOptions{Context: t.Context(), CertificateChainProvider: who}
		tsa := clock(at)
		var logs []*verifytest.Rekor
		var raw []byte
		if stamped {
			raw = who.Sign(t, releaseOf(model), tsa)
		} else {
			rekor := verifytest.NewRekor(t, at)
			server := httptest.NewServer(rekor)
			defer server.Close()
			logs = append(logs, rekor)
			opt.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{BaseURL: server.URL, Version: 1})}
			b, err := sign.Bundle(&sign.DSSEData{Data: releaseOf(model), PayloadType: attest.InTotoPayloadType}, who, opt)
			if err != nil {
				t.Fatal(err)
			}
			if raw, err = protojson.Marshal(b); err != nil {
				t.Fatal(err)
			}
		}
		trust := parse(t, file(certified("ci", "authority: sigstore, san: ci@acme.example, issuer: "+issuer, ""), "authorities:\n"+authorityEntry("sigstore", "trustedRoot", ca.TrustedRoot(t, tsa, logs...))))
		_, err := Bundle(raw, model, trust, moved(forever))
		return err
	}
	private := func(ca *verifytest.CA, certFrom, certTo time.Time) *verifytest.Certified {
		return ca.Issue(t, "release@acme.example", certFrom, certTo, x509.ExtKeyUsageCodeSigning)
	}
	acme := func(ca *verifytest.CA, rest string) *Trust {
		return parse(t, file(certified("acme", "authority: acme, san: release@acme.example", ""), "authorities:\n"+authorityEntry("acme", "certificates", ca.Root())+rest))
	}
	list, err := SignStatusList(k, attest.StatusList{Version: 1, Issuer: "x", Validity: attest.Validity{NotBefore: from, NotAfter: to}, Withdrawn: []attest.StatusEntry{}})
	if err != nil {
		t.Fatal(err)
	}
	plain := signed(t, k, releaseOf(model))
	verified := func(raw []byte, trust *Trust, c Context) error {
		_, err := Bundle(raw, model, trust, c)
		return err
	}
	admitted := func(at time.Time) Context {
		return Context{Repository: "credit/scorer", AdmittedAt: at, Now: forever}
	}
	const inclusive, exclusive = true, false
	for name, tc := range map[string]struct {
		ask           func(at time.Time) error
		before, after string // codes
		last          bool   // whether the end belongs to it, as it does of X.509 certificates
	}{
		"a key, the question's time": {func(at time.Time) error { return verified(plain, key(window, ""), moved(at)) }, CodeWindow, CodeWindow, exclusive},
		"a key, the log's time":      {func(at time.Time) error { return verified(plain, key(window, ""), admitted(at)) }, CodeWindow, CodeWindow, exclusive},
		"a key, a timestamp's time": {func(at time.Time) error {
			a := clock(at)
			return verified(verifytest.Stamped(t, releaseOf(model), keypair{k}, a), key(window, "authorities:\n"+timestamps(a)), moved(forever))
		}, CodeWindow, CodeWindow, exclusive},
		"a lost key, the log's time": {func(at time.Time) error {
			return verified(plain, key(stamp("notBefore", from)+stamp("distrustAfter", to), ""), admitted(at))
		}, CodeWindow, CodeWindow, inclusive},
		"a lost key, a timestamp's time": {func(at time.Time) error {
			a := clock(at)
			return verified(verifytest.Stamped(t, releaseOf(model), keypair{k}, a), key(stamp("notBefore", from)+stamp("distrustAfter", to), "authorities:\n"+timestamps(a)), moved(forever))
		}, CodeWindow, CodeWindow, inclusive},
		"a private certificate, the question's time": {func(at time.Time) error {
			return verified(private(wide, from, to).Sign(t, releaseOf(model)), acme(wide, ""), moved(at))
		}, CodeWindow, CodeWindow, inclusive},
		"a private certificate, the log's time": {func(at time.Time) error {
			return verified(private(wide, from, to).Sign(t, releaseOf(model)), acme(wide, ""), admitted(at))
		}, CodeWindow, CodeWindow, inclusive},
		"a private certificate, a timestamp's time": {func(at time.Time) error {
			a := clock(at)
			return verified(private(wide, from, to).Sign(t, releaseOf(model), a), acme(wide, timestamps(a)), moved(forever))
		}, CodeWindow, CodeWindow, inclusive},
		"a private authority": {func(at time.Time) error {
			return verified(private(narrow, from, to).Sign(t, releaseOf(model)), acme(narrow, ""), admitted(at))
		}, CodeWindow, CodeWindow, inclusive},
		"Fulcio's certificate, Rekor's time":  {func(at time.Time) error { return keyless(wide, from, to, at, false) }, CodeWindow, CodeWindow, inclusive},
		"Fulcio's certificate, a timestamp's": {func(at time.Time) error { return keyless(wide, from, to, at, true) }, CodeWindow, CodeWindow, inclusive},
		"a status list": {func(at time.Time) error {
			_, err := ParseStatus(list, parse(t, file(entry("server", k, "", Withdrawal), "")), moved(at))
			return err
		}, CodeStatusStale, CodeStatusStale, exclusive},
		"a timestamp authority's own certificate": {func(at time.Time) error {
			a := verifytest.NewTSA(t, at, from, to)
			// The key ended before: only a timestamp that counts saves it.
			return verified(verifytest.Stamped(t, releaseOf(model), keypair{k}, a), key(stamp("notAfter", to.Add(time.Hour)), "authorities:\n"+timestamps(a)), moved(forever))
		}, CodeWindow, CodeWindow, inclusive},
	} {
		last := tc.after
		if tc.last {
			last = ""
		}
		// A clock may be a little behind that of whoever signs a status list.
		early := from.Add(-time.Second)
		if name == "a status list" {
			early = from.Add(-skew - time.Second)
		}
		for _, step := range []struct {
			name string
			at   time.Time
			code string
		}{
			{"long before", from.Add(-day), tc.before}, {"just before", early, tc.before}, {"the first moment", from, ""}, {"inside", base, ""},
			{"just inside", to.Add(-time.Second), ""}, {"the end", to, last}, {"just after", to.Add(time.Second), tc.after}, {"long after", to.Add(day), tc.after},
		} {
			err := tc.ask(step.at)
			if step.code == "" && err != nil {
				t.Errorf("%s, %s: %v", name, step.name, err)
			} else if step.code != "" && codeOf(err) != step.code {
				t.Errorf("%s, %s: %v, want %s", name, step.name, err, step.code)
			}
		}
	}
}

// codeOf is the code of an error, or "" if there is none.
func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return failureOf(err).Code
}
