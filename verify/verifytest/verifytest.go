// Package verifytest has the authorities that tests need: a private
// certificate authority, an RFC 3161 timestamp authority with a clock that a
// test can move, and a Sigstore instance in memory. They are real ones, with
// keys made for the test.
package verifytest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"
)

// inTotoPayload is the media type of what is signed.
const inTotoPayload = "application/vnd.in-toto+json"

// chain is a root and an intermediate certificate authority.
type chain struct {
	root, intermediate *x509.Certificate
	key                *ecdsa.PrivateKey // of the intermediate
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func issue(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newChain(t testing.TB, name string, from, to time.Time) chain {
	t.Helper()
	authority := func(name string) *x509.Certificate {
		return &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	rootKey, key := newKey(t), newKey(t)
	c := chain{key: key}
	template := authority(name + " root")
	c.root = issue(t, template, template, rootKey.Public(), rootKey)
	c.intermediate = issue(t, authority(name+" intermediate"), c.root, key.Public(), rootKey)
	return c
}

func pemOf(certs ...*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.String()
}

// A CA is a private certificate authority. As a Fulcio it shows what it issues
// to the transparency log CT, if that is set.
type CA struct {
	chain
	CT *CT
}

// NewCA makes one whose own certificates are valid from a time to another.
func NewCA(t testing.TB, from, to time.Time) *CA {
	t.Helper()
	return &CA{chain: newChain(t, "private", from, to)}
}

// Root is the root's certificate in PEM.
func (a *CA) Root() string { return pemOf(a.root) }

// A Certified is a key with a certificate, which signs.
type Certified struct {
	*sign.EphemeralKeypair
	Chain [][]byte // DER, the signer's first
}

// GetCertificateChain implements sign.CertificateChainProvider.
func (c *Certified) GetCertificateChain(context.Context, sign.Keypair, *sign.CertificateProviderOptions) ([][]byte, error) {
	return c.Chain, nil
}

// Issue makes a key and certifies that it is san's, from a time to another.
func (a *CA) Issue(t testing.TB, san string, from, to time.Time, usage ...x509.ExtKeyUsage) *Certified {
	t.Helper()
	kp, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		t.Fatal(err)
	}
	if usage == nil {
		usage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	}
	leaf := issue(t, &x509.Certificate{
		EmailAddresses: []string{san}, NotBefore: from, NotAfter: to, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
	}, a.intermediate, kp.GetPublicKey(), a.key)
	return &Certified{kp, [][]byte{leaf.Raw, a.intermediate.Raw}}
}

// Certify certifies that a key is san's: the chain in PEM, the signer's first.
func (a *CA) Certify(t testing.TB, public crypto.PublicKey, san string, from, to time.Time) string {
	t.Helper()
	leaf := issue(t, &x509.Certificate{
		EmailAddresses: []string{san}, NotBefore: from, NotAfter: to, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}, a.intermediate, public, a.key)
	return pemOf(leaf, a.intermediate)
}

// WithRoot is the signer with the authority's root in the chain.
func (a *CA) WithRoot(c *Certified) [][]byte { return [][]byte{c.Chain[0], c.Chain[1], a.root.Raw} }

// Sign signs a statement into a bundle with the certificate's chain.
func (c *Certified) Sign(t testing.TB, statement []byte, stamps ...*TSA) []byte {
	t.Helper()
	return bundleOf(t, statement, c, sign.BundleOptions{CertificateChainProvider: c, TimestampAuthorities: clients(stamps)})
}

func bundleOf(t testing.TB, statement []byte, kp sign.Keypair, opt sign.BundleOptions) []byte {
	t.Helper()
	opt.Context = t.Context()
	b, err := sign.Bundle(&sign.DSSEData{Data: statement, PayloadType: inTotoPayload}, kp, opt)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A TSA is an RFC 3161 timestamp authority; it is also an http.Handler.
type TSA struct {
	chain
	leaf   *x509.Certificate
	signer *ecdsa.PrivateKey

	// Now is what it states; zero is the real time. Its certificates have to be
	// valid now as well: the library beneath signs the real time beside it.
	Now time.Time
}

// NewTSA makes one whose certificates are valid from a time to another.
func NewTSA(t testing.TB, now, from, to time.Time) *TSA {
	t.Helper()
	a := &TSA{chain: newChain(t, "time", from, to), signer: newKey(t), Now: now}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		t.Fatal(err)
	}
	// "The corresponding certificate MUST contain only one instance of the
	// extended key usage field extension … having KeyPurposeID id-kp-timeStamping.
	// This extension MUST be critical" (RFC 3161, 2.3).
	a.leaf = issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "time"}, NotBefore: from, NotAfter: to, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}},
	}, a.intermediate, a.signer.Public(), a.key)
	return a
}

// PEM is its chain, as a trust file names it.
func (a *TSA) PEM() string { return pemOf(a.leaf, a.intermediate, a.root) }

// TrustedRoot is a trusted_root.json with it alone, as cosign reads it.
func (a *TSA) TrustedRoot(t testing.TB) string {
	t.Helper()
	return trustedRoot(t, nil, nil, []root.TimestampingAuthority{a.authority()}, nil)
}

func (a *TSA) authority() *root.SigstoreTimestampingAuthority {
	return &root.SigstoreTimestampingAuthority{
		Root: a.root, Intermediates: []*x509.Certificate{a.intermediate}, Leaf: a.leaf, URI: "https://tsa.example",
		ValidityPeriodStart: a.leaf.NotBefore, ValidityPeriodEnd: a.leaf.NotAfter,
	}
}

// ServeHTTP implements http.Handler: RFC 3161, 3.4.
func (a *TSA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req, err := timestamp.ParseRequest(raw)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ts := timestamp.Timestamp{
		HashAlgorithm: req.HashAlgorithm, HashedMessage: req.HashedMessage, Time: orReal(a.Now), Nonce: req.Nonce,
		Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}, Accuracy: time.Second,
		AddTSACertificate: req.Certificates, Certificates: []*x509.Certificate{a.intermediate},
	}
	answer, err := ts.CreateResponseWithOpts(a.leaf, a.signer, crypto.SHA256)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/timestamp-reply")
	w.WriteHeader(http.StatusCreated) // as Sigstore's does, and its client wants
	w.Write(answer)
}

// orReal is a time, or the real one instead of zero.
func orReal(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}

// RoundTrip implements http.RoundTripper: the authority without a network.
func (a *TSA) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	a.ServeHTTP(rec, r)
	return rec.Result(), nil
}

// Stamp is a timestamp of a message.
func (a *TSA) Stamp(t testing.TB, message []byte) []byte {
	t.Helper()
	raw, err := clients([]*TSA{a})[0].GetTimestamp(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func clients(list []*TSA) (out []*sign.TimestampAuthority) {
	for _, a := range list {
		out = append(out, sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: "https://tsa.example", Transport: a}))
	}
	return out
}

// Stamped signs a statement with a key into a bundle with timestamps.
func Stamped(t testing.TB, statement []byte, kp sign.Keypair, stamps ...*TSA) []byte {
	t.Helper()
	return bundleOf(t, statement, kp, sign.BundleOptions{TimestampAuthorities: clients(stamps)})
}

// A Sigstore is Fulcio, Rekor and a timestamp authority in memory. Its
// certificates are valid for some minutes around now.
type Sigstore struct{ *ca.VirtualSigstore }

// NewSigstore makes one.
func NewSigstore(t testing.TB) *Sigstore {
	t.Helper()
	s, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	return &Sigstore{s}
}

// TrustedRoot is its trusted_root.json, without a certificate transparency
// log: its certificates are in none. With, it names one all the same.
func (s *Sigstore) TrustedRoot(t testing.TB, withCT bool) string {
	t.Helper()
	var ct map[string]*root.TransparencyLog
	if withCT {
		ct = s.CTLogs()
	}
	return trustedRoot(t, s.FulcioCertificateAuthorities(), ct, s.TimestampingAuthorities(), s.RekorLogs())
}

func trustedRoot(t testing.TB, cas []root.CertificateAuthority, ct map[string]*root.TransparencyLog, tsas []root.TimestampingAuthority, rekor map[string]*root.TransparencyLog) string {
	t.Helper()
	for _, logs := range []map[string]*root.TransparencyLog{ct, rekor} {
		for id, l := range logs {
			raw, err := hex.DecodeString(id) // the library's double has it in hex
			if err != nil {
				t.Fatal(err)
			}
			l.ID = raw
		}
	}
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, cas, ct, tsas, rekor)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := tr.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Keyless signs a statement as somebody whom an issuer authenticated, into a
// bundle v0.3 with an entry of Rekor v1 or v2 and a timestamp. The entry's
// inclusion proof is there for v2 and for v1.
func (s *Sigstore) Keyless(t testing.TB, san, issuer string, statement []byte, rekorV2 bool) []byte {
	t.Helper()
	at := time.Now().Add(time.Minute)
	var e *ca.TestEntity
	var err error
	if rekorV2 {
		e, err = s.AttestAtTimeHashedRekordV2(san, issuer, statement, at)
	} else {
		e, err = s.AttestAtTime(san, issuer, statement, at, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	content, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	env := signed.EnvelopeContent().RawEnvelope()
	payload, err := base64.StdEncoding.DecodeString(env.Payload)
	if err != nil {
		t.Fatal(err)
	}
	stamps, err := e.Timestamps()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := e.TlogEntries()
	if err != nil {
		t.Fatal(err)
	}
	b := &protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:                   &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: content.Certificate().Raw}},
			TimestampVerificationData: &protobundle.TimestampVerificationData{},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: payload, PayloadType: env.PayloadType, Signatures: []*protodsse.Signature{{Sig: signed.Signature()}},
		}},
	}
	for _, s := range stamps {
		b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps = append(b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps, &protocommon.RFC3161SignedTimestamp{SignedTimestamp: s})
	}
	for _, e := range entries {
		tle := e.TransparencyLogEntry()
		if !rekorV2 { // what the library's double leaves out
			tle.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
			promise, err := s.RekorSignPayload(tlog.RekorPayload{
				Body: base64.StdEncoding.EncodeToString(tle.CanonicalizedBody), IntegratedTime: tle.IntegratedTime, LogIndex: tle.LogIndex, LogID: hex.EncodeToString(tle.LogId.KeyId),
			})
			if err != nil {
				t.Fatal(err)
			}
			tle.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: promise}
		}
		b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, tle)
	}
	raw, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Fulcio is the authority as a Fulcio: it certifies whatever key it is sent as
// san's, whom issuer authenticated, for ten minutes.
func (a *CA) Fulcio(t testing.TB, san, issuer string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			PublicKeyRequest struct {
				PublicKey struct {
					Content string `json:"content"`
				} `json:"publicKey"`
			} `json:"publicKeyRequest"`
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/api/v2/signingCert" || !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
			http.Error(w, "it is no request for a certificate", http.StatusBadRequest)
			return
		}
		block, _ := pem.Decode([]byte(q.PublicKeyRequest.PublicKey.Content))
		if block == nil {
			http.Error(w, "no key", http.StatusBadRequest)
			return
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		leaf, err := a.certify(t, public, san, issuer, time.Now().Add(-time.Minute), time.Now().Add(9*time.Minute))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"signedCertificateEmbeddedSct": map[string]any{"chain": map[string]any{
			"certificates": []string{pemOf(leaf), pemOf(a.intermediate), pemOf(a.root)},
		}}})
	})
}

// certify issues a certificate as Fulcio does.
func (a *CA) certify(t testing.TB, public crypto.PublicKey, san, issuer string, from, to time.Time) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), EmailAddresses: []string{san}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(issuer)}},
	}
	if a.CT != nil {
		promise, err := a.CT.promise(t, *template, a.intermediate, public, a.key)
		if err != nil {
			return nil, err
		}
		template.ExtraExtensions = append(template.ExtraExtensions, promise)
	}
	return issue(t, template, a.intermediate, public, a.key), nil
}

// Keyless makes a key and certifies it as Fulcio does, from a time to another.
func (a *CA) Keyless(t testing.TB, san, issuer string, from, to time.Time) *Certified {
	t.Helper()
	kp, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.certify(t, kp.GetPublicKey(), san, issuer, from, to)
	if err != nil {
		t.Fatal(err)
	}
	return &Certified{kp, [][]byte{leaf.Raw, a.intermediate.Raw}}
}

// A CT is a certificate transparency log (RFC 6962), as far as an authority
// asks it: it promises to log a certificate before that is issued.
type CT struct{ key *ecdsa.PrivateKey }

// NewCT makes one.
func NewCT(t testing.TB) *CT {
	t.Helper()
	return &CT{newKey(t)}
}

func (l *CT) id() ([sha256.Size]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(l.key.Public())
	return sha256.Sum256(der), err
}

// promise is the extension with the signed certificate timestamp of what is
// about to be issued from a template.
func (l *CT) promise(t testing.TB, template x509.Certificate, issuer *x509.Certificate, public crypto.PublicKey, by *ecdsa.PrivateKey) (pkix.Extension, error) {
	// "A Precertificate is constructed from the certificate to be issued by
	// adding a special critical poison extension" (RFC 6962, 3.1).
	template.ExtraExtensions = append(slices.Clone(template.ExtraExtensions), pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}, Critical: true, Value: asn1.NullBytes})
	pre := issue(t, &template, issuer, public, by)
	var chain []*ctx509.Certificate
	for _, c := range []*x509.Certificate{pre, issuer} {
		parsed, err := ctx509.ParseCertificate(c.Raw)
		if ctx509.IsFatal(err) {
			return pkix.Extension{}, err
		}
		chain = append(chain, parsed)
	}
	id, err := l.id()
	if err != nil {
		return pkix.Extension{}, err
	}
	sct := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, LogID: ct.LogID{KeyID: id}, Timestamp: uint64(time.Now().UnixMilli())}
	leaf, err := ct.MerkleTreeLeafFromChain(chain, ct.PrecertLogEntryType, sct.Timestamp)
	if err != nil {
		return pkix.Extension{}, err
	}
	input, err := ct.SerializeSCTSignatureInput(sct, ct.LogEntry{Leaf: *leaf})
	if err != nil {
		return pkix.Extension{}, err
	}
	signed, err := cttls.CreateSignature(*l.key, cttls.SHA256, input)
	if err != nil {
		return pkix.Extension{}, err
	}
	sct.Signature = ct.DigitallySigned(signed)
	list, err := x509util.MarshalSCTsIntoSCTList([]*ct.SignedCertificateTimestamp{&sct})
	if err != nil {
		return pkix.Extension{}, err
	}
	raw, err := cttls.Marshal(*list)
	if err != nil {
		return pkix.Extension{}, err
	}
	value, err := asn1.Marshal(raw)
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: value}, err
}

// TrustedRoot is a trusted_root.json of the authority as a Fulcio, with a
// timestamp authority, Rekor logs and its certificate transparency.
func (a *CA) TrustedRoot(t testing.TB, stamps *TSA, logs ...*Rekor) string {
	t.Helper()
	rekor := map[string]*root.TransparencyLog{}
	for _, l := range logs {
		maps.Copy(rekor, l.log(t, a.root.NotBefore, a.root.NotAfter))
	}
	var transparency map[string]*root.TransparencyLog
	if a.CT != nil {
		id, err := a.CT.id()
		if err != nil {
			t.Fatal(err)
		}
		transparency = map[string]*root.TransparencyLog{hex.EncodeToString(id[:]): {
			BaseURL: "https://ct.example", ID: id[:], ValidityPeriodStart: a.root.NotBefore, ValidityPeriodEnd: a.root.NotAfter,
			HashFunc: crypto.SHA256, PublicKey: a.CT.key.Public(), SignatureHashFunc: crypto.SHA256,
		}}
	}
	var tsas []root.TimestampingAuthority
	if stamps != nil {
		tsas = append(tsas, stamps.authority())
	}
	return trustedRoot(t, []root.CertificateAuthority{&root.FulcioCertificateAuthority{
		Root: a.root, Intermediates: []*x509.Certificate{a.intermediate}, URI: "https://fulcio.example", ValidityPeriodStart: a.root.NotBefore, ValidityPeriodEnd: a.root.NotAfter,
	}}, transparency, tsas, rekor)
}

// IdentityToken is an unsigned OIDC token, as one reads it before Fulcio
// checks it.
func IdentityToken(san, issuer string) string {
	part := func(v any) string {
		raw, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	return part(map[string]string{"alg": "none"}) + "." + part(map[string]any{"sub": san, "email": san, "email_verified": true, "iss": issuer}) + ".x"
}
