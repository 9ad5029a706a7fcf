package verify

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/assay-dev/assay/verify/attest"
)

// An Authority vouches for others: for whose a key is, or for when something
// was signed. It has one of the three fields. All of it is in the trust file,
// so nothing is fetched to verify, today or in ten years.
type Authority struct {
	ID string `json:"id" yaml:"id"`

	// Certificates (PEM) are those of a private certificate authority: its
	// roots, which are self-signed, and intermediates. Signers' certificates
	// must be for code signing.
	Certificates string `json:"certificates,omitempty" yaml:"certificates,omitempty"`

	// Timestamps (PEM) is the chain of an RFC 3161 timestamp authority: the
	// certificate that signs timestamps first, the root last.
	Timestamps string `json:"timestamps,omitempty" yaml:"timestamps,omitempty"`

	// TrustedRoot is a Sigstore trusted_root.json: Fulcio, certificate
	// transparency, Rekor and timestamp authorities that belong together. What
	// it names is required: a proof of each sort of log that is in it, and a
	// time that Rekor v1 or a timestamp authority signed.
	TrustedRoot string `json:"trustedRoot,omitempty" yaml:"trustedRoot,omitempty"`
}

// An authority is one that was read.
type authority struct {
	id       string
	private  root.TrustedMaterial // of a private certificate authority
	sigstore *root.TrustedRoot
}

// issues reports whether it issues certificates to signers.
func (a *authority) issues() bool { return a.private != nil || a.keyless() }

// keyless reports whether it is a Sigstore instance.
func (a *authority) keyless() bool { return a.sigstore != nil }

func (t *Trust) authority(id string) *authority {
	for _, a := range t.authorities {
		if a.id == id {
			return a
		}
	}
	return nil
}

// material is one sort of trusted material.
type material struct {
	root.BaseTrustedMaterial
	issuers    []root.CertificateAuthority
	timestamps []root.TimestampingAuthority
}

func (m *material) FulcioCertificateAuthorities() []root.CertificateAuthority { return m.issuers }
func (m *material) TimestampingAuthorities() []root.TimestampingAuthority     { return m.timestamps }

func (t *Trust) readAuthorities() error {
	times := &material{}
	for i, a := range t.file.Authorities {
		switch {
		case a == nil || a.ID == "":
			return fmt.Errorf("authority %d has no id", i+1)
		case t.authority(a.ID) != nil:
			return fmt.Errorf("authority %q: the id is used twice", a.ID)
		}
		wrong := func(err error) error { return fmt.Errorf("authority %q: %w", a.ID, err) }
		read := &authority{id: a.ID}
		n := 0
		for _, s := range []string{a.Certificates, a.Timestamps, a.TrustedRoot} {
			if s != "" {
				n++
			}
		}
		switch {
		case n != 1:
			return wrong(errors.New("write one of certificates, timestamps and trustedRoot"))
		case a.Certificates != "":
			certs, err := parseCertificates(a.Certificates)
			if err != nil {
				return wrong(err)
			}
			a.Certificates = certificatesPEM(certs)
			m := &material{}
			var intermediates []*x509.Certificate
			for _, c := range certs {
				if !selfSigned(c) {
					intermediates = append(intermediates, c)
				}
			}
			for _, c := range certs {
				if selfSigned(c) {
					m.issuers = append(m.issuers, &root.FulcioCertificateAuthority{Root: c, Intermediates: intermediates, URI: a.ID})
				}
			}
			if len(m.issuers) == 0 {
				return wrong(errors.New("certificates: none of them is a root: a self-signed one has to be there"))
			}
			read.private = m
		case a.Timestamps != "":
			certs, err := parseCertificates(a.Timestamps)
			if err != nil {
				return wrong(err)
			}
			a.Timestamps = certificatesPEM(certs)
			last := len(certs) - 1
			if last == 0 || !selfSigned(certs[last]) {
				return wrong(errors.New("timestamps: write the certificate that signs timestamps first and the self-signed root last"))
			}
			times.timestamps = append(times.timestamps, &root.SigstoreTimestampingAuthority{
				Root: certs[last], Intermediates: certs[1:last], Leaf: certs[0], URI: a.ID,
			})
		default:
			tr, err := root.NewTrustedRootFromJSON([]byte(a.TrustedRoot))
			if err != nil {
				return wrong(fmt.Errorf("trustedRoot: %w", err))
			}
			switch none := len(tr.TimestampingAuthorities()) == 0; {
			case none && len(tr.FulcioCertificateAuthorities()) == 0:
				return wrong(errors.New("trustedRoot: it names neither who issues certificates nor who states times"))
			case none && len(tr.RekorLogs()) == 0:
				return wrong(errors.New("trustedRoot: it names neither Rekor nor a timestamp authority, so nothing would show that a certificate was valid " +
					"when it was used: write the certificates of such an authority under certificates"))
			}
			canonical, err := attest.Marshal(json.RawMessage(a.TrustedRoot))
			if err != nil {
				return wrong(fmt.Errorf("trustedRoot: %w", err))
			}
			a.TrustedRoot = string(canonical)
			times.timestamps = append(times.timestamps, tr.TimestampingAuthorities()...)
			if len(tr.FulcioCertificateAuthorities()) > 0 {
				read.sigstore = tr
			}
		}
		t.authorities = append(t.authorities, read)
	}
	t.timestamps = times
	return nil
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

func parseCertificates(text string) (list []*x509.Certificate, err error) {
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q is no certificate", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if len(list) == 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("it holds something that is no certificate in PEM")
	}
	return list, nil
}

func certificatesPEM(list []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range list {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.String()
}

// How it is known when something was signed, the best first.
const (
	ByTimestamp = "timestamp" // an RFC 3161 timestamp of an authority that the trust file names
	ByRekor     = "rekor"     // the signed time of a Rekor v1 entry
	ByLog       = "log"       // the leaf of our log that admitted it
	NoTime      = "none"
)

// A Time is evidence of when something was signed: not later than At.
type Time struct {
	At        time.Time `json:"at,omitzero"`
	By        string    `json:"by"`
	Authority string    `json:"authority,omitempty"` // of a timestamp
}

func (t Time) String() string {
	at := t.At.UTC().Format(time.RFC3339)
	switch t.By {
	case ByTimestamp:
		return "timestamped " + at
	case ByRekor:
		return "logged by Rekor " + at
	case ByLog:
		return "admitted at " + at
	}
	return "without evidence of when it was signed"
}

// skew is how far the clock of a timestamp authority may be ahead of ours.
const skew = 5 * time.Minute

// signedAt is the best evidence of when a bundle was signed. Timestamps of
// authorities that are not trusted are none.
func signedAt(b *bundle.Bundle, trust *Trust, c Context) (Time, error) {
	best := Time{By: NoTime}
	if !c.AdmittedAt.IsZero() {
		best = Time{At: c.AdmittedAt, By: ByLog}
	}
	if stamps, err := b.Timestamps(); err != nil {
		return Time{}, fail(CodeBundleInvalid, "sign again", "its timestamps cannot be read: %v", err)
	} else if len(stamps) == 0 || len(trust.timestamps.TimestampingAuthorities()) == 0 {
		return best, nil
	}
	verified, _, err := sgverify.VerifySignedTimestamp(b, trust.timestamps)
	if err != nil {
		return Time{}, fail(CodeBundleInvalid, "sign again", "its timestamps: %v", err)
	}
	// What two authorities saw existed when the first of them saw it.
	for _, ts := range verified {
		if best.By != ByTimestamp || ts.Time.Before(best.At) {
			best = Time{At: ts.Time.UTC(), By: ByTimestamp, Authority: ts.URI}
		}
	}
	return best, notAhead(best, c)
}

// notAhead refuses evidence from the future.
func notAhead(t Time, c Context) error {
	if t.By != NoTime && t.By != ByLog && t.At.After(c.Now.Add(skew)) {
		return fail(CodeWindow, "check the clocks of this machine and of the authority", "it is %s, which is not yet", t)
	}
	return nil
}

// A signer is who a certificate says that somebody is.
type signer struct {
	issuer, san, subject string
	time                 Time
}

// privately checks a certificate of a private authority, which has to have
// been valid when the signature was made; the signature is the caller's to
// check.
func (a *authority) privately(content sgverify.VerificationContent, signed Time, c Context) (signer, error) {
	at := signed.At
	if signed.By == NoTime {
		at = c.Now
	}
	leaf := content.Certificate()
	tm := &material{}
	for _, ca := range a.private.FulcioCertificateAuthorities() {
		with := *ca.(*root.FulcioCertificateAuthority)
		with.Intermediates = append(append([]*x509.Certificate{}, with.Intermediates...), content.Intermediates()...)
		tm.issuers = append(tm.issuers, &with)
	}
	if _, err := sgverify.VerifyLeafCertificate(at, leaf, tm); err != nil {
		if _, err := sgverify.VerifyLeafCertificate(leaf.NotBefore, leaf, tm); err == nil {
			return signer{}, fail(CodeWindow, "sign with a certificate that is valid, and with a timestamp, which keeps the signature valid after the certificate expired",
				"its certificate was valid from %s to %s; it is %s", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), signed)
		}
		return signer{}, fail(CodeCertificate, "add the authority's certificates to the trust file", "no authority of the trust file issued its certificate for signing")
	}
	s := signer{subject: leaf.Subject.String(), time: signed}
	// A certificate without an alternative name is known by its subject.
	if summary, err := certificate.SummarizeCertificate(leaf); err == nil {
		s.san = summary.SubjectAlternativeName
	}
	return s, nil
}

// signedByCertificate checks the signature of a bundle whose certificate was
// checked.
func signedByCertificate(b *bundle.Bundle, content sgverify.VerificationContent, digests []sgverify.ArtifactDigest) error {
	sig, err := b.SignatureContent()
	if err != nil {
		return fail(CodeBundleInvalid, "sign again", "%v", err)
	}
	if err := sgverify.VerifySignatureWithArtifactDigests(sig, content, &material{}, digests); err != nil {
		if signsSomething(sig, content) {
			return errSubject
		}
		return fail(CodeSignature, "sign again", "its signature is not by the key of its certificate")
	}
	return nil
}

// signsSomething reports whether a signature verifies over whatever its bundle
// says that it is of.
func signsSomething(sig sgverify.SignatureContent, content sgverify.VerificationContent) bool {
	if m := sig.MessageSignatureContent(); m != nil {
		return sgverify.VerifySignatureWithArtifactDigests(sig, content, &material{}, []sgverify.ArtifactDigest{{Digest: m.Digest()}}) == nil
	}
	return sgverify.VerifySignature(sig, content, &material{}) == nil
}

// whose are the identities that a certificate is of.
func (t *Trust) whose(a *authority, s signer) (ids []*Identity) {
	for _, id := range t.file.Identities {
		if id.Certificate.matches(a.id, s) {
			ids = append(ids, id)
		}
	}
	return ids
}

func unknownIdentity(a *authority, s signer) error {
	by := ""
	if s.issuer != "" {
		by = ", whom " + s.issuer + " authenticated,"
	}
	return fail(CodeIdentity, "give the signer an identity in the trust file", "%q%s signed it, which is no identity of the trust file at authority %s", cmp.Or(s.san, s.subject), by, a.id)
}

func noAuthority() error {
	return fail(CodeCertificate, "add the authority to the trust file, or sign with a key that is in it", "it is signed with a certificate, and the trust file names no authority that issues any")
}

// errSubject says that a signature verifies, over a statement about something
// else.
var errSubject = errors.New("it speaks of something else")

// vouched asks each authority that issues certificates who signed something,
// until one of them knows an identity of the trust file.
func (t *Trust) vouched(who func(*authority) (signer, error)) ([]*Identity, Time, error) {
	var best error
	for _, a := range t.authorities {
		if !a.issues() {
			continue
		}
		s, err := who(a)
		switch {
		case errors.Is(err, errSubject):
			return nil, Time{}, err
		case err != nil:
			best = closer(best, err)
			continue
		}
		ids := t.whose(a, s)
		if len(ids) == 0 {
			best = closer(best, unknownIdentity(a, s))
			continue
		}
		return ids, s.time, nil
	}
	if best == nil {
		best = noAuthority()
	}
	return nil, Time{}, best
}

// verifier is the library's, which asks for what the trusted root names.
func (a *authority) verifier() (*sgverify.Verifier, error) {
	opts := []sgverify.VerifierOption{sgverify.WithObserverTimestamps(1)}
	if len(a.sigstore.RekorLogs()) > 0 {
		opts = append(opts, sgverify.WithTransparencyLog(1))
	}
	if len(a.sigstore.CTLogs()) > 0 {
		opts = append(opts, sgverify.WithSignedCertificateTimestamps(1))
	}
	return sgverify.NewVerifier(a.sigstore, opts...)
}

// publicly verifies a bundle under a Sigstore instance: a certificate of
// Fulcio that a certificate transparency log has seen, a Rekor entry with its
// proof, and a time that an authority or Rekor signed.
func (a *authority) publicly(b *bundle.Bundle, about sgverify.ArtifactPolicyOption, c Context) (signer, error) {
	v, err := a.verifier()
	if err != nil {
		return signer{}, err
	}
	// Who it is is compared with the identities of the trust file afterwards.
	res, err := v.Verify(b, sgverify.NewPolicy(about, sgverify.WithoutIdentitiesUnsafe()))
	if err != nil {
		return signer{}, a.why(v, b, err)
	}
	s := signer{issuer: res.Signature.Certificate.Issuer, san: res.Signature.Certificate.SubjectAlternativeName, time: bestOf(res.VerifiedTimestamps)}
	return s, notAhead(s.time, c)
}

// bestOf is the best of the times that authorities and logs signed: a
// timestamp, and of several the first.
func bestOf(times []sgverify.TimestampVerificationResult) Time {
	best := Time{By: NoTime}
	for _, ts := range times {
		by := ByTimestamp
		if ts.Type == "Tlog" {
			by = ByRekor
		}
		if best.By == NoTime || by == ByTimestamp && best.By == ByRekor || by == best.By && ts.Timestamp.Before(best.At) {
			best = Time{At: ts.Timestamp.UTC(), By: by, Authority: ts.URI}
		}
	}
	return best
}

// dated does the library's steps up to the signature, each with a code of its
// own if it fails: the log entry, the times, the certificate at each of them,
// and its transparency. stamps are times that authorities signed beside those
// in the bundle.
func (a *authority) dated(v *sgverify.Verifier, b *bundle.Bundle, stamps []sgverify.TimestampVerificationResult) ([]sgverify.TimestampVerificationResult, sgverify.VerificationContent, error) {
	content, err := b.VerificationContent()
	if err != nil {
		return nil, nil, fail(CodeBundleInvalid, "sign again", "%v", err)
	}
	logged, err := v.VerifyTransparencyLogInclusion(b)
	if err != nil {
		if entries, err := b.TlogEntries(); err == nil {
			for _, e := range entries {
				if at := e.IntegratedTime(); !at.IsZero() && !content.ValidAtTime(at, a.sigstore) {
					return nil, nil, fail(CodeWindow, "sign again", "its certificate was not valid at %s, when it says that it was logged", at.UTC().Format(time.RFC3339))
				}
			}
		}
		return nil, nil, fail(CodeRekor, "sign again, with the Rekor that the trust file names", "its entry in the transparency log does not verify: %v", err)
	}
	times, err := v.VerifyObserverTimestamps(b, logged)
	if err != nil && len(stamps) == 0 {
		return nil, nil, fail(CodeTime, "sign again, with a timestamp authority that the trust file names", "no authority shows when it was signed: %v", err)
	}
	times = append(times, stamps...)
	var chains [][]*x509.Certificate
	for _, ts := range times {
		if chains, err = sgverify.VerifyLeafCertificate(ts.Timestamp, content.Certificate(), a.sigstore); err != nil {
			if _, err := sgverify.VerifyLeafCertificate(content.Certificate().NotBefore, content.Certificate(), a.sigstore); err == nil {
				return nil, nil, fail(CodeWindow, "sign again", "its certificate was not valid at %s, when it was signed", ts.Timestamp.UTC().Format(time.RFC3339))
			}
			return nil, nil, fail(CodeCertificate, "add the authority to the trust file", "no authority of the trust file issued its certificate for signing")
		}
	}
	if len(a.sigstore.CTLogs()) > 0 {
		if err := sgverify.VerifySignedCertificateTimestamp(chains, 1, a.sigstore); err != nil {
			return nil, nil, fail(CodeCertificate, "sign again, with the Fulcio that the trust file names", "no certificate transparency log of the trust file has seen its certificate: %v", err)
		}
	}
	return times, content, nil
}

// why finds the step at which the library refused a bundle.
func (a *authority) why(v *sgverify.Verifier, b *bundle.Bundle, refused error) error {
	_, content, err := a.dated(v, b, nil)
	if err != nil {
		return err
	}
	sig, err := b.SignatureContent()
	if err != nil {
		return fail(CodeBundleInvalid, "sign again", "%v", err)
	}
	if signsSomething(sig, content) {
		return errSubject
	}
	return fail(CodeSignature, "sign again", "its signature does not verify: %v", refused)
}
