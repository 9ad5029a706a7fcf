package verify

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/verifytest"
)

// simple is what `cosign sign` before version 3 signs.
func simple(subject digest.Digest) []byte {
	return []byte(`{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"` + string(subject) + `"},"type":"cosign container image signature"},"optional":null}`)
}

// An old layer is one that cosign before version 3 attached.
type oldLayer struct {
	blob []byte
	ocispec.Descriptor
}

// with is the layer with an annotation changed; "" removes it.
func (l oldLayer) with(name, value string) oldLayer {
	l.Annotations = maps.Clone(l.Annotations)
	if l.Annotations[name] = value; value == "" {
		delete(l.Annotations, name)
	}
	return l
}

// stamped is the layer with a timestamp of a message.
func (l oldLayer) stamped(t testing.TB, a *verifytest.TSA, message []byte) oldLayer {
	t.Helper()
	raw, err := json.Marshal(map[string][]byte{"SignedRFC3161Timestamp": a.Stamp(t, message)})
	if err != nil {
		t.Fatal(err)
	}
	return l.with(annotationTimestamp, string(raw))
}

func (l oldLayer) signature(t testing.TB) []byte {
	t.Helper()
	if l.MediaType == legacySignature {
		sig, err := base64.StdEncoding.DecodeString(l.Annotations[annotationSignature])
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	var env struct{ Signatures []struct{ Sig []byte } }
	if err := json.Unmarshal(l.blob, &env); err != nil {
		t.Fatal(err)
	}
	return env.Signatures[0].Sig
}

func (l oldLayer) verify(t testing.TB, subject digest.Digest, trust *Trust, c Context) (*Verified, error) {
	t.Helper()
	d := l.Descriptor
	d.Digest, d.Size = digest.FromBytes(l.blob), int64(len(l.blob))
	manifest, err := json.Marshal(ocispec.Manifest{Layers: []ocispec.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := Legacy(t.Context(), manifest, subject, func(context.Context, ocispec.Descriptor) ([]byte, error) { return l.blob, nil }, trust, c)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if list[0].Failure != nil {
		return nil, list[0].Failure
	}
	return list[0].Verified, nil
}

// old signs a payload (simple signing), or a statement if attested, as cosign
// before version 3 did: with a certificate, and an entry of Rekor 1 if there
// is a log.
func old(t testing.TB, who *verifytest.Certified, payload []byte, attested bool, rekor *verifytest.Rekor) oldLayer {
	t.Helper()
	opt := sign.BundleOptions{Context: t.Context(), CertificateChainProvider: who}
	if rekor != nil {
		server := httptest.NewServer(rekor)
		defer server.Close()
		opt.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{BaseURL: server.URL, Version: 1})}
	}
	var content sign.Content = &sign.PlainData{Data: payload}
	if attested {
		content = &sign.DSSEData{Data: payload, PayloadType: attest.InTotoPayloadType}
	}
	b, err := sign.Bundle(content, who, opt)
	if err != nil {
		t.Fatal(err)
	}
	l := oldLayer{blob: payload, Descriptor: ocispec.Descriptor{MediaType: legacySignature, Annotations: map[string]string{}}}
	if attested {
		env := b.GetDsseEnvelope()
		l.MediaType = legacyAttestation
		l.Annotations["predicateType"] = attest.PredicateSignature
		if l.blob, err = json.Marshal(map[string]any{"payloadType": env.PayloadType, "payload": env.Payload, "signatures": []any{map[string]any{"keyid": "", "sig": env.Signatures[0].Sig}}}); err != nil {
			t.Fatal(err)
		}
	} else {
		l.Annotations[annotationSignature] = base64.StdEncoding.EncodeToString(b.GetMessageSignature().Signature)
	}
	for i, c := range b.VerificationMaterial.GetX509CertificateChain().Certificates {
		name := annotationChain
		if i == 0 {
			name = annotationCertificate
		}
		l.Annotations[name] += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.RawBytes}))
	}
	for _, e := range b.VerificationMaterial.TlogEntries {
		raw, err := json.Marshal(map[string]any{
			"SignedEntryTimestamp": e.InclusionPromise.SignedEntryTimestamp,
			"Payload":              map[string]any{"body": e.CanonicalizedBody, "integratedTime": e.IntegratedTime, "logIndex": e.LogIndex, "logID": hex.EncodeToString(e.LogId.KeyId)},
		})
		if err != nil {
			t.Fatal(err)
		}
		l.Annotations[annotationRekor] = string(raw)
	}
	return l
}

// unlogged is a Rekor annotation without a member.
func unlogged(t testing.TB, l oldLayer, edit func(m map[string]any)) oldLayer {
	t.Helper()
	return l.with(annotationRekor, string(edited(t, []byte(l.Annotations[annotationRekor]), edit)))
}

// What cosign before version 3 attached with a certificate of Fulcio: signatures
// and attestations, each failure with its own code. Without a time that a log or
// an authority signed there is none, whenever we admitted it.
func TestLegacyKeyless(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	ca := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day))
	ca.CT = verifytest.NewCT(t)
	rekor := verifytest.NewRekor(t, now)
	tsa := verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	stranger := verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	who := ca.Keyless(t, "ci@acme.example", issuer, now.Add(-time.Minute), now.Add(9*time.Minute))
	with := func(identity, root string) *Trust {
		return parse(t, file(identity, "authorities:\n"+authorityEntry("acme", "trustedRoot", root)))
	}
	identity := certified("ci", "authority: acme, san: ci@acme.example, issuer: "+issuer, "")
	trust := with(identity, ca.TrustedRoot(t, tsa, rekor))
	timed := with(identity, ca.TrustedRoot(t, tsa)) // asks for no log
	roleless := with(strings.Replace(identity, "[release]", "[deployment]", 1), ca.TrustedRoot(t, tsa, rekor))
	elsewhere := with(identity, verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day)).TrustedRoot(t, tsa, rekor))
	unseen := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day)) // no transparency
	seen := *unseen
	seen.CT = verifytest.NewCT(t)
	other := verifytest.NewRekor(t, now)
	for _, attested := range []bool{false, true} {
		payload := func(d digest.Digest) []byte {
			if attested {
				return releaseOf(d)
			}
			return simple(d)
		}
		stampable := func(l oldLayer) []byte {
			if attested {
				return l.blob // as cosign does: the whole envelope
			}
			return l.signature(t)
		}
		good := old(t, who, payload(model), attested, rekor)
		foreign := old(t, who, payload(digest.FromString("other")), attested, rekor)
		bare := old(t, who, payload(model), attested, nil)
		rekor.Now = now.Add(20 * time.Minute)
		late := old(t, who, payload(model), attested, rekor)
		rekor.Now = now
		lateStamp := verifytest.NewTSA(t, now.Add(20*time.Minute), now.Add(-10*day), now.Add(10*day))
		for name, tc := range map[string]struct {
			layer   oldLayer
			subject digest.Digest
			trust   *Trust
			c       Context
			code    string // "" if it verifies
			by      string
		}{
			"logged":                             {good, model, trust, moved(now), "", ByRekor},
			"logged, years later":                {good, model, trust, moved(now.Add(5000 * day)), "", ByRekor},
			"logged and timestamped":             {good.stamped(t, tsa, stampable(good)), model, trust, moved(now), "", ByTimestamp},
			"timestamped, no log asked for":      {bare.stamped(t, tsa, stampable(bare)), model, timed, moved(now.Add(5000 * day)), "", ByTimestamp},
			"a strange timestamp is none":        {good.stamped(t, stranger, stampable(good)), model, trust, moved(now), "", ByRekor},
			"asked before it was signed":         {good, model, trust, moved(now.Add(-time.Hour)), CodeWindow, ""},
			"not logged":                         {bare, model, trust, moved(now), CodeRekor, ""},
			"not logged, though timestamped":     {bare.stamped(t, tsa, stampable(bare)), model, trust, moved(now), CodeRekor, ""},
			"no time":                            {bare, model, timed, moved(now), CodeTime, ""},
			"no time but ours":                   {bare, model, timed, Context{Repository: "credit/scorer", Now: now, AdmittedAt: now}, CodeTime, ""},
			"a strange timestamp":                {bare.stamped(t, stranger, stampable(bare)), model, timed, moved(now), CodeTime, ""},
			"a timestamp of something else":      {bare.stamped(t, tsa, []byte("else")), model, timed, moved(now), CodeTime, ""},
			"a timestamp after the certificate":  {bare.stamped(t, lateStamp, stampable(bare)), model, with(identity, ca.TrustedRoot(t, lateStamp)), moved(now.Add(day)), CodeWindow, ""},
			"logged after the certificate":       {late, model, trust, moved(now.Add(day)), CodeWindow, ""},
			"another log":                        {old(t, who, payload(model), attested, other), model, trust, moved(now), CodeRekor, ""},
			"an impostor of the log":             {old(t, who, payload(model), attested, rekor.Impostor(t)), model, trust, moved(now), CodeRekor, ""},
			"no promise":                         {unlogged(t, good, func(m map[string]any) { delete(m, "SignedEntryTimestamp") }), model, trust, moved(now), CodeRekor, ""},
			"another time than was promised":     {unlogged(t, good, func(m map[string]any) { m["Payload"].(map[string]any)["integratedTime"] = now.Unix() + 1 }), model, trust, moved(now), CodeRekor, ""},
			"the log entry of another":           {good.with(annotationRekor, foreign.Annotations[annotationRekor]), model, trust, moved(now), CodeRekor, ""},
			"an entry that cannot be read":       {good.with(annotationRekor, "{"), model, trust, moved(now), CodeBundleInvalid, ""},
			"an entry of nothing":                {unlogged(t, good, func(m map[string]any) { m["Payload"].(map[string]any)["body"] = []byte("{}") }), model, trust, moved(now), CodeBundleInvalid, ""},
			"a certificate that cannot be read":  {good.with(annotationCertificate, "x"), model, trust, moved(now), CodeBundleInvalid, ""},
			"no certificate":                     {good.with(annotationCertificate, ""), model, trust, moved(now), CodeUnknownKey, ""},
			"another person":                     {old(t, ca.Keyless(t, "eve@acme.example", issuer, now.Add(-time.Minute), now.Add(time.Minute)), payload(model), attested, rekor), model, trust, moved(now), CodeIdentity, ""},
			"another issuer":                     {old(t, ca.Keyless(t, "ci@acme.example", "https://evil.example", now.Add(-time.Minute), now.Add(time.Minute)), payload(model), attested, rekor), model, trust, moved(now), CodeIdentity, ""},
			"another authority":                  {good, model, elsewhere, moved(now), CodeCertificate, ""},
			"a certificate that no log has seen": {old(t, unseen.Keyless(t, "ci@acme.example", issuer, now.Add(-time.Minute), now.Add(time.Minute)), payload(model), attested, rekor), model, with(identity, seen.TrustedRoot(t, tsa, rekor)), moved(now), CodeCertificate, ""},
			"another subject":                    {good, digest.FromString("x"), trust, moved(now), CodeSubject, ""},
			"without the role":                   {good, model, roleless, moved(now), CodeRole, ""},
			"in another repository":              {good, model, trust, Context{Repository: "other/x", Now: now}, CodeRepository, ""},
			"nobody is trusted":                  {good, model, NoTrust(), moved(now), CodeCertificate, ""},
			"somebody else's certificate": {bare.stamped(t, tsa, stampable(bare)).with(annotationCertificate, old(t, ca.Keyless(t, "ci@acme.example", issuer, now.Add(-time.Minute), now.Add(time.Minute)), payload(model), attested, nil).Annotations[annotationCertificate]),
				model, timed, moved(now), CodeSignature, ""},
		} {
			v, err := tc.layer.verify(t, tc.subject, tc.trust, tc.c)
			settled(t, map[bool]string{false: "signature, ", true: "attestation, "}[attested]+name, v, err, tc.code, tc.by, "ci")
		}
	}
}

// settled checks what came of a verification: a code, or else who and how it is
// known when.
func settled(t testing.TB, name string, v *Verified, err error, code, by, identity string) {
	t.Helper()
	var f *Failure
	switch {
	case code != "" && (!errors.As(err, &f) || f.Code != code):
		t.Errorf("%s: %+v, %v, want %s", name, v, err, code)
	case code != "" && f.Message == "":
		t.Errorf("%s: %s says nothing", name, code)
	case code == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case code == "" && (v.Signed.By != by || v.Identity != identity || v.Role != Release || v.Subject != model):
		t.Errorf("%s: %+v", name, v)
	}
}

// The same with a certificate of a private authority, under a moved clock.
func TestLegacyPrivateAuthority(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	ca := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day))
	who := ca.Issue(t, "release@acme.example", now.Add(-day), now.Add(day))
	tsa := verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	stranger := verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	trust := parse(t, file(certified("release", "authority: acme, san: release@acme.example", ""),
		"authorities:\n"+authorityEntry("acme", "certificates", ca.Root())+authorityEntry("clock", "timestamps", tsa.PEM())))
	for _, attested := range []bool{false, true} {
		payload := simple(model)
		if attested {
			payload = releaseOf(model)
		}
		plain := old(t, who, payload, attested, nil)
		message := plain.signature(t)
		if attested {
			message = plain.blob
		}
		foreign := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day))
		for name, tc := range map[string]struct {
			layer   oldLayer
			subject digest.Digest
			c       Context
			code    string
			by      string
		}{
			"inside":                           {plain, model, moved(now), "", NoTime},
			"the first moment":                 {plain, model, moved(now.Add(-day)), "", NoTime},
			"before":                           {plain, model, moved(now.Add(-day - time.Second)), CodeWindow, ""},
			"after":                            {plain, model, moved(now.Add(2 * day)), CodeWindow, ""},
			"after, admitted inside":           {plain, model, Context{Repository: "credit/scorer", Now: now.Add(50 * day), AdmittedAt: now}, "", ByLog},
			"inside, admitted after":           {plain, model, Context{Repository: "credit/scorer", Now: now, AdmittedAt: now.Add(2 * day)}, CodeWindow, ""},
			"after, timestamped inside":        {plain.stamped(t, tsa, message), model, moved(now.Add(5000 * day)), "", ByTimestamp},
			"after, a strange timestamp":       {plain.stamped(t, stranger, message), model, moved(now.Add(2 * day)), CodeWindow, ""},
			"after, of something else":         {plain.stamped(t, tsa, []byte("else")), model, moved(now.Add(2 * day)), CodeWindow, ""},
			"a timestamp from the future":      {plain.stamped(t, tsa, message), model, moved(now.Add(-time.Hour)), CodeWindow, ""},
			"the root in the chain":            {plain.with(annotationChain, plain.Annotations[annotationChain]+ca.Root()), model, moved(now), "", NoTime},
			"an intermediate is missing":       {plain.with(annotationChain, ""), model, moved(now), CodeCertificate, ""},
			"a chain that cannot be read":      {plain.with(annotationChain, "x"), model, moved(now), CodeBundleInvalid, ""},
			"another authority's, with root":   {old(t, foreign.Issue(t, "release@acme.example", now.Add(-day), now.Add(day)), payload, attested, nil).with(annotationChain, foreign.Root()), model, moved(now), CodeCertificate, ""},
			"another owner":                    {old(t, ca.Issue(t, "intern@acme.example", now.Add(-day), now.Add(day)), payload, attested, nil), model, moved(now), CodeIdentity, ""},
			"somebody else's certificate":      {plain.with(annotationCertificate, old(t, ca.Issue(t, "release@acme.example", now.Add(-day), now.Add(day)), payload, attested, nil).Annotations[annotationCertificate]), model, moved(now), CodeSignature, ""},
			"another subject":                  {plain, digest.FromString("x"), moved(now), CodeSubject, ""},
			"a payload that was not signed so": {oldLayer{append([]byte(" "), plain.blob...), plain.Descriptor}, model, moved(now), map[bool]string{false: CodeSignature}[attested], NoTime},
		} {
			v, err := tc.layer.verify(t, tc.subject, trust, tc.c)
			settled(t, map[bool]string{false: "signature, ", true: "attestation, "}[attested]+name, v, err, tc.code, tc.by, "release")
		}
	}
	two := old(t, who, releaseOf(model), true, nil)
	two.blob = edited(t, two.blob, func(e map[string]any) { e["signatures"] = append(e["signatures"].([]any), e["signatures"].([]any)[0]) })
	v, err := two.verify(t, model, trust, moved(now))
	settled(t, "two signatures", v, err, CodeBundleInvalid, "", "")
}

// Take any annotation of an old layer, or any field inside one, and change it:
// it does not verify, or says the same by the same signer.
func TestEveryFieldOfALegacySignatureCounts(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	ca := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day))
	ca.CT = verifytest.NewCT(t)
	rekor, tsa := verifytest.NewRekor(t, now), verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	who := ca.Keyless(t, "ci@acme.example", issuer, now.Add(-time.Minute), now.Add(9*time.Minute))
	trust := parse(t, file(certified("ci", "authority: acme, san: ci@acme.example, issuer: "+issuer, ""), "authorities:\n"+authorityEntry("acme", "trustedRoot", ca.TrustedRoot(t, tsa, rekor))))
	for name, l := range map[string]oldLayer{"signature": old(t, who, simple(model), false, rekor), "attestation": old(t, who, releaseOf(model), true, rekor)} {
		want, err := l.verify(t, model, trust, moved(now))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n, refused := 0, 0
		check := func(path string, mutant oldLayer) {
			n++
			v, err := mutant.verify(t, model, trust, moved(now))
			if err != nil {
				refused++
				return
			}
			if string(v.Payload) != string(want.Payload) || v.Identity != want.Identity || v.Signed != want.Signed {
				t.Errorf("%s, %s: it says %s by %s, %v", name, path, v.Payload, v.Identity, v.Signed)
			}
		}
		mutations(t, []byte(l.Annotations[annotationRekor]), func(path string, mutant []byte) { check("Rekor's "+path, l.with(annotationRekor, string(mutant))) })
		mutations(t, l.blob, func(path string, mutant []byte) { check("blob "+path, oldLayer{mutant, l.Descriptor}) })
		for a, value := range l.Annotations {
			check(a+" removed", l.with(a, ""))
			for i := 0; i < len(value); i += 1 + len(value)/100 {
				turned := []byte(value)
				turned[i] ^= 1
				check(a+" turned", l.with(a, string(turned)))
			}
		}
		if n < 100 || refused < n/2 {
			t.Errorf("%s: of %d mutants %d were refused", name, n, refused)
		}
	}
}

// manifestSigned is a bundle whose signature is over the content itself.
func manifestSigned(t testing.TB, kp sign.Keypair, content string, edit ...func(*sign.BundleOptions)) []byte {
	t.Helper()
	opt := sign.BundleOptions{Context: t.Context()}
	if c, ok := kp.(*verifytest.Certified); ok {
		opt.CertificateChainProvider = c
	}
	for _, e := range edit {
		e(&opt)
	}
	b, err := sign.Bundle(&sign.PlainData{Data: []byte(content)}, kp, opt)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A bundle may sign the manifest itself, in place of a statement about it.
func TestMessageSignatures(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	k, lab := newKey(t), newKey(t)
	ca := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day))
	rekor := verifytest.NewRekor(t, now)
	tsa := verifytest.NewTSA(t, now, now.Add(-10*day), now.Add(10*day))
	acme := verifytest.NewCA(t, now.Add(-100*day), now.Add(100*day))
	private := acme.Issue(t, "release@acme.example", now.Add(-day), now.Add(day))
	keyless := ca.Keyless(t, "ci@acme.example", issuer, now.Add(-time.Minute), now.Add(9*time.Minute))
	trust := parse(t, file(entry("team", k, "", Release)+entry("lab", lab, "", Conformance)+
		certified("ci", "authority: sigstore, san: ci@acme.example, issuer: "+issuer, "")+certified("acme", "authority: acme, san: release@acme.example", ""),
		"authorities:\n"+authorityEntry("sigstore", "trustedRoot", ca.TrustedRoot(t, tsa, rekor))+authorityEntry("acme", "certificates", acme.Root())))
	server := httptest.NewServer(rekor)
	defer server.Close()
	logged := func(o *sign.BundleOptions) {
		o.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{BaseURL: server.URL, Version: 1})}
	}
	bare := manifestSigned(t, keypair{k}, "model")
	for name, tc := range map[string]struct {
		bundle   []byte
		c        Context
		code     string
		by       string
		identity string
	}{
		"key":                       {bare, moved(now), "", NoTime, "team"},
		"private authority":         {manifestSigned(t, private, "model"), moved(now), "", NoTime, "acme"},
		"private authority, after":  {manifestSigned(t, private, "model"), moved(now.Add(2 * day)), CodeWindow, "", ""},
		"keyless":                   {manifestSigned(t, keyless, "model", logged), moved(now.Add(5000 * day)), "", ByRekor, "ci"},
		"keyless, not logged":       {manifestSigned(t, keyless, "model"), moved(now), CodeRekor, "", ""},
		"another manifest, key":     {manifestSigned(t, keypair{k}, "other"), moved(now), CodeSubject, "", ""},
		"another manifest, private": {manifestSigned(t, private, "other"), moved(now), CodeSubject, "", ""},
		"another manifest, keyless": {manifestSigned(t, keyless, "other", logged), moved(now), CodeSubject, "", ""},
		"an unknown key":            {manifestSigned(t, keypair{newKey(t)}, "model"), moved(now), CodeUnknownKey, "", ""},
		"a key without the role":    {manifestSigned(t, keypair{lab}, "model"), moved(now), CodeRole, "", ""},
		"the digest of another": {edited(t, bare, func(b map[string]any) {
			sum, _ := hex.DecodeString(digest.FromString("other").Encoded())
			b["messageSignature"].(map[string]any)["messageDigest"].(map[string]any)["digest"] = sum
		}), moved(now), CodeUnknownKey, "", ""},
		"the digest with something behind it": {edited(t, bare, func(b map[string]any) {
			sum, _ := hex.DecodeString(model.Encoded() + "00")
			b["messageSignature"].(map[string]any)["messageDigest"].(map[string]any)["digest"] = sum
		}), moved(now), CodeUnknownKey, "", ""},
		"no digest": {edited(t, bare, func(b map[string]any) { delete(b["messageSignature"].(map[string]any), "messageDigest") }), moved(now), CodeUnknownKey, "", ""},
		"v0.1":      {edited(t, bare, func(b map[string]any) { b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1" }), moved(now), "", NoTime, "team"},
		"v0.2":      {edited(t, bare, func(b map[string]any) { b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.2" }), moved(now), "", NoTime, "team"},
	} {
		v, err := Bundle(tc.bundle, model, trust, tc.c)
		settled(t, name, v, err, tc.code, tc.by, tc.identity)
		if err == nil && (v.Payload != nil || v.Statement.PredicateType != attest.PredicateSignature || !v.Statement.Names(model)) {
			t.Errorf("%s: %+v", name, v)
		}
		if _, ok := Ahead(tc.bundle, trust); ok {
			t.Errorf("%s: it was opened ahead", name)
		}
	}
	mutations(t, bare, func(path string, mutant []byte) {
		v, err := Bundle(mutant, model, trust, moved(now))
		if err == nil && (v.Identity != "team" || v.Subject != model) {
			t.Errorf("%s: %+v", path, v)
		}
	})
	// The manifest that carries it says which it is, and what it claims.
	if p := ClaimedPredicate(map[string]string{attest.AnnotationBundleKind: "message-signature"}); p != attest.PredicateSignature {
		t.Errorf("it claims %q", p)
	}
	var pb protobundle.Bundle
	if err := protojson.Unmarshal(bare, &pb); err != nil || pb.GetMessageSignature() == nil {
		t.Errorf("it is no message signature: %v", err)
	}
}
