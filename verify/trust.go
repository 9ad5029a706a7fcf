package verify

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/root"
	"go.yaml.in/yaml/v3"

	"github.com/assay-dev/assay/verify/attest"
)

// A Role is what an identity is trusted to say.
type Role string

const (
	Release     Role = "release"     // this version is released
	Provenance  Role = "provenance"  // this is where it came from
	Conformance Role = "conformance" // this environment behaves, or does not
	Deployment  Role = "deployment"  // this runs there
	Approval    Role = "approval"    // a person approves
	Withdrawal  Role = "withdrawal"  // this is taken back
)

// Roles are all of them.
var Roles = []Role{Release, Provenance, Conformance, Deployment, Approval, Withdrawal}

// roleFor is the one table of which role a statement needs.
func roleFor(s attest.Statement) (Role, error) {
	switch s.PredicateType {
	case attest.PredicateSignature:
		return Release, nil
	case attest.PredicateLineage, attest.PredicateProvenance:
		return Provenance, nil
	case attest.PredicateCertificate, attest.PredicateTestResult, attest.PredicateRefusal:
		return Conformance, nil
	case attest.PredicateDeployment:
		return Deployment, nil
	case attest.PredicateApproval:
		return Approval, nil
	case attest.PredicateWithdrawal:
		return Withdrawal, nil
	}
	return "", fail(CodePredicate, "attach it as another artifact, or state what has a role: see 'assay trust --help'", "predicate type %q has no role, so nobody is trusted to state it", s.PredicateType)
}

// A Trust says who may say what, where and when. It does not change.
type Trust struct {
	file   trustFile
	digest digest.Digest

	keys        []*trustedKey
	byHint      map[string]*trustedKey
	authorities []*authority
	timestamps  root.TrustedMaterial // who may say when
	accounts    map[string]string    // whose each is: holders
}

// A trustedKey is a public key with the identities that sign with it.
type trustedKey struct {
	key        *ecdsa.PublicKey
	hint       string
	identities []*Identity
}

// An Identity is somebody, known by a key or by what a certificate says, with
// what they are trusted for. Rotation is a second identity of the same holder
// whose window begins before the first one's ends.
type Identity struct {
	ID string `json:"id" yaml:"id"`

	// Holder is the person or the pipeline whose identity it is: identities
	// of one holder count once toward a quorum. Empty is the ID itself; those
	// that share a key share a holder.
	Holder string `json:"holder,omitempty" yaml:"holder,omitempty"`

	// PublicKey (PEM; ECDSA P-256, which every Sigstore client verifies, or
	// P-384 or P-521) or Certificate says how they are known.
	PublicKey   string               `json:"publicKey,omitempty" yaml:"publicKey,omitempty"`
	Certificate *CertificateIdentity `json:"certificate,omitempty" yaml:"certificate,omitempty"`

	// KMS is where the private half of PublicKey is kept, such as
	// "awskms:///alias/release", for whoever signs. Verification asks no KMS.
	KMS string `json:"kms,omitempty" yaml:"kms,omitempty"`

	// Accounts are those from which the holder pushes: the opaque ids that a
	// registry's log has ('assay access whoami' prints one's own). Who pushed a
	// version cannot approve it.
	Accounts []string `json:"accounts,omitempty" yaml:"accounts,omitempty"`

	Roles        []Role    `json:"roles" yaml:"roles"`
	Repositories []string  `json:"repositories" yaml:"repositories"`
	NotBefore    time.Time `json:"notBefore,omitzero" yaml:"notBefore,omitempty"`
	NotAfter     time.Time `json:"notAfter,omitzero" yaml:"notAfter,omitempty"`

	// DistrustAfter is when the key may have been lost: what a timestamp or a
	// log shows to be older stands, everything else does not.
	DistrustAfter time.Time `json:"distrustAfter,omitzero" yaml:"distrustAfter,omitempty"`

	key    *ecdsa.PublicKey
	holder string
}

// A CertificateIdentity is what a certificate has to say of its owner.
type CertificateIdentity struct {
	// Authority is the id of the authority that issued it.
	Authority string `json:"authority" yaml:"authority"`

	// Issuer is who authenticated the owner to Fulcio (OID 1.3.6.1.4.1.57264.1.8);
	// certificates of other authorities have none.
	Issuer string `json:"issuer,omitempty" yaml:"issuer,omitempty"`

	// SAN is the subject alternative name (mail address, URI); SANPattern is a
	// regular expression (RE2) that has to match the whole of it. Subject is
	// the distinguished name (RFC 2253), for certificates of a private
	// authority. One of the three.
	SAN        string `json:"san,omitempty" yaml:"san,omitempty"`
	SANPattern string `json:"sanPattern,omitempty" yaml:"sanPattern,omitempty"`
	Subject    string `json:"subject,omitempty" yaml:"subject,omitempty"`

	pattern *regexp.Regexp
}

// A Quorum asks for statements of several holders where one would do else.
type Quorum struct {
	Role         Role     `json:"role" yaml:"role"`
	Repositories []string `json:"repositories" yaml:"repositories"`
	AtLeast      int      `json:"atLeast" yaml:"atLeast"`
}

// trustFile is the form of trust.yaml.
type trustFile struct {
	Version     int          `json:"version" yaml:"version"`
	Identities  []*Identity  `json:"identities" yaml:"identities"`
	Authorities []*Authority `json:"authorities,omitempty" yaml:"authorities,omitempty"`
	Quorums     []*Quorum    `json:"quorums,omitempty" yaml:"quorums,omitempty"`
}

// Bounds of a trust file. A signature that names no key is tried under all of
// them, at a tenth of a millisecond each.
const (
	maxTrustFile   = 1 << 20
	maxIdentities  = 1000
	maxAuthorities = 32
)

// NoTrust trusts nobody.
func NoTrust() *Trust {
	t, err := newTrust(trustFile{Version: 1, Identities: []*Identity{}})
	if err != nil {
		panic(err) // it is valid as it stands
	}
	return t
}

// ParseTrust reads a trust file (YAML, version 1), strictly: unknown fields,
// unknown roles, keys that cannot be read, identities without roles or
// repositories, and quorums that nobody can reach are errors.
func ParseTrust(raw []byte) (*Trust, error) {
	if len(raw) > maxTrustFile {
		return nil, fmt.Errorf("trust file: %d bytes, at most %d are read", len(raw), maxTrustFile)
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	var f trustFile
	if err := dec.Decode(&f); err != nil {
		if err == io.EOF {
			return nil, fmt.Errorf("trust file: it is empty")
		}
		return nil, fmt.Errorf("trust file: %w", err)
	}
	var more any
	if err := dec.Decode(&more); err != io.EOF {
		return nil, fmt.Errorf("trust file: something follows the first document")
	}
	return newTrust(f)
}

func newTrust(f trustFile) (*Trust, error) {
	switch {
	case f.Version != 1:
		return nil, fmt.Errorf("trust file: version %d is unknown; write version: 1", f.Version)
	case len(f.Identities) > maxIdentities:
		return nil, fmt.Errorf("trust file: %d identities, at most %d are read", len(f.Identities), maxIdentities)
	case len(f.Authorities) > maxAuthorities:
		return nil, fmt.Errorf("trust file: %d authorities, at most %d are read", len(f.Authorities), maxAuthorities)
	}
	t := &Trust{file: f, byHint: map[string]*trustedKey{}}
	if err := t.readAuthorities(); err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	seen := map[string]bool{}
	for i, id := range f.Identities {
		switch {
		case id == nil:
			return nil, fmt.Errorf("trust file: identity %d is empty", i+1)
		case id.ID == "":
			return nil, fmt.Errorf("trust file: identity %d has no id", i+1)
		case seen[id.ID]:
			return nil, fmt.Errorf("trust file: identity %q: the id is used twice", id.ID)
		}
		seen[id.ID] = true
		if err := t.readIdentity(id); err != nil {
			return nil, fmt.Errorf("trust file: identity %q: %w", id.ID, err)
		}
	}
	if err := t.holders(); err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	for i, q := range f.Quorums {
		if err := t.reachable(q); err != nil {
			return nil, fmt.Errorf("trust file: quorum %d: %w", i+1, err)
		}
	}
	canonical, err := attest.Marshal(f)
	if err != nil {
		return nil, err
	}
	t.digest = digest.FromBytes(canonical)
	return t, nil
}

// readIdentity checks an identity and gives it the one form that there is for
// every way to write the same, so that the digest is of what the file means.
func (t *Trust) readIdentity(id *Identity) error {
	if len(id.Roles) == 0 {
		return fmt.Errorf("it has no roles; write roles: [release], or one of %v", Roles)
	}
	if !id.NotAfter.IsZero() && !id.NotBefore.Before(id.NotAfter) {
		return errors.New("its window ends before it begins")
	}
	for _, r := range id.Roles {
		if !slices.Contains(Roles, r) {
			return fmt.Errorf("role %q is unknown; the roles are %v", r, Roles)
		}
	}
	if err := checkPatterns(id.Repositories); err != nil {
		return err
	}
	for _, a := range id.Accounts {
		if !accountRE.MatchString(a) {
			return fmt.Errorf("%q is no account: write the id that 'assay access whoami' prints, such as user:0123456789abcdef", a)
		}
	}
	id.NotBefore, id.NotAfter, id.DistrustAfter = id.NotBefore.UTC(), id.NotAfter.UTC(), id.DistrustAfter.UTC()
	if id.KMS != "" && id.PublicKey == "" {
		return errors.New("kms needs publicKey beside it, because verification asks no KMS: 'assay keys show' prints it")
	}
	if c := id.Certificate; c != nil {
		if id.PublicKey != "" {
			return errors.New("it has publicKey and certificate; make two identities with one holder")
		}
		return t.readCertificateIdentity(c)
	}
	k, err := parsePublic([]byte(id.PublicKey))
	if err != nil {
		return fmt.Errorf("publicKey: %w", err)
	}
	id.key, id.PublicKey = k, string(publicPEM(k))
	h := hint(k)
	known := t.byHint[h]
	if known == nil {
		known = &trustedKey{key: k, hint: h}
		t.byHint[h], t.keys = known, append(t.keys, known)
	}
	known.identities = append(known.identities, id)
	return nil
}

// accountRE is the form of accounts: no names, because they are in a log that
// forgets nothing.
var accountRE = regexp.MustCompile(`^((user|token):[0-9a-f]{16}|anonymous)$`)

func (t *Trust) readCertificateIdentity(c *CertificateIdentity) error {
	a := t.authority(c.Authority)
	switch {
	case a == nil:
		return fmt.Errorf("certificate: authority %q is not among the authorities of the file", c.Authority)
	case !a.issues():
		return fmt.Errorf("certificate: authority %q states times and issues no certificates to signers", c.Authority)
	case a.keyless() && c.Issuer == "":
		return errors.New("certificate: issuer is missing: who authenticates the signer to Fulcio, such as https://token.actions.githubusercontent.com")
	case !a.keyless() && c.Issuer != "":
		return errors.New("certificate: issuer is for Fulcio's certificates; those of a private authority have none")
	case a.keyless() && c.Subject != "":
		return errors.New("certificate: subject is for certificates of a private authority; Fulcio's have a san")
	}
	n := 0
	for _, s := range []string{c.SAN, c.SANPattern, c.Subject} {
		if s != "" {
			n++
		}
	}
	if n != 1 {
		return errors.New("certificate: write one of san, sanPattern and subject")
	}
	if c.SANPattern != "" {
		var err error
		if c.pattern, err = regexp.Compile(`^(?:` + c.SANPattern + `)$`); err != nil {
			return fmt.Errorf("certificate: sanPattern: %w", err)
		}
	}
	return nil
}

// matches says whether a certificate of an authority, with these names, is
// the identity's.
func (c *CertificateIdentity) matches(authority string, s signer) bool {
	switch {
	case c == nil || c.Authority != authority || c.Issuer != s.issuer:
		return false
	case c.Subject != "":
		return c.Subject == s.subject
	case s.san == "":
		return false
	case c.pattern != nil:
		return c.pattern.MatchString(s.san)
	}
	return c.SAN == s.san
}

func checkPatterns(patterns []string) error {
	if len(patterns) == 0 {
		return errors.New(`it has no repositories; write repositories: ["**"] for all`)
	}
	for _, p := range patterns {
		if _, err := path.Match(strings.TrimSuffix(p, "**"), ""); err != nil || p == "" {
			return fmt.Errorf("repository pattern %q is malformed", p)
		}
	}
	return nil
}

// holders settles whose each identity is: who shares a key is one holder,
// whatever the file calls them.
func (t *Trust) holders() error {
	for _, id := range t.file.Identities {
		id.holder = id.Holder
	}
	for _, k := range t.keys {
		said := ""
		for _, id := range k.identities {
			if id.Holder != "" && said != "" && id.Holder != said {
				return fmt.Errorf("identity %q: its key is also that of holder %q; one key has one holder", id.ID, said)
			}
			if said == "" {
				said = id.Holder
			}
		}
		if said == "" {
			said = k.identities[0].ID
		}
		for _, id := range k.identities {
			id.holder = said
		}
	}
	t.accounts = map[string]string{}
	for _, id := range t.file.Identities {
		if id.holder == "" {
			id.holder = id.ID
		}
		for _, a := range id.Accounts {
			if other := t.accounts[a]; other != "" && other != id.holder {
				return fmt.Errorf("identity %q: the account %s is also that of holder %q; one account has one holder", id.ID, a, other)
			}
			t.accounts[a] = id.holder
		}
	}
	return nil
}

// submission is who put a version where it is, as far as the file says whose
// accounts they are.
func (t *Trust) submission(accounts []string) *Submission {
	s := &Submission{}
	for _, a := range accounts {
		holder, known := t.accounts[a]
		switch {
		case !known:
			s.Unknown = append(s.Unknown, a)
		case !slices.Contains(s.Holders, holder):
			s.Holders = append(s.Holders, holder)
		}
	}
	return s
}

// reachable refuses a quorum that cannot mean what it says.
func (t *Trust) reachable(q *Quorum) error {
	switch {
	case q == nil:
		return errors.New("it is empty")
	case !slices.Contains(Roles, q.Role):
		return fmt.Errorf("role %q is unknown; the roles are %v", q.Role, Roles)
	case q.Role == Withdrawal:
		return errors.New("a withdrawal takes effect with the first statement: waiting for a second would allow what one has withdrawn")
	case q.AtLeast < 2:
		return errors.New("atLeast is 2 or more; one is what is needed without a quorum")
	}
	if err := checkPatterns(q.Repositories); err != nil {
		return err
	}
	holders := map[string]bool{}
	for _, id := range t.file.Identities {
		if slices.Contains(id.Roles, q.Role) {
			holders[id.holder] = true
		}
	}
	if len(holders) < q.AtLeast {
		return fmt.Errorf("it asks for %d holders of the role %s and the file has %d", q.AtLeast, q.Role, len(holders))
	}
	return nil
}

// Quorum is how many holders have to state what needs a role in a repository:
// 1, unless the file asks for more.
func (t *Trust) Quorum(role Role, repository string) int {
	n := 1
	for _, q := range t.file.Quorums {
		if q.Role == role && matchesAny(q.Repositories, repository) {
			n = max(n, q.AtLeast)
		}
	}
	return n
}

// Digest identifies what the trust file says, whatever its layout.
func (t *Trust) Digest() digest.Digest { return t.digest }

// Identities lists who is trusted.
func (t *Trust) Identities() []Identity {
	var list []Identity
	for _, id := range t.file.Identities {
		list = append(list, *id)
	}
	return list
}

// Authorities lists whose certificates and timestamps are believed.
func (t *Trust) Authorities() []Authority {
	var list []Authority
	for _, a := range t.file.Authorities {
		list = append(list, *a)
	}
	return list
}

// Quorums lists where one statement is not enough.
func (t *Trust) Quorums() []Quorum {
	var list []Quorum
	for _, q := range t.file.Quorums {
		list = append(list, *q)
	}
	return list
}

// MarshalJSON implements json.Marshaler: the canonical form.
func (t *Trust) MarshalJSON() ([]byte, error) { return json.Marshal(t.file) }

// may says whether the identity is trusted for a role in a repository at the
// time that the evidence shows.
func (id *Identity) may(role Role, c Context, signed Time) error {
	if !slices.Contains(id.Roles, role) {
		return fail(CodeRole, fmt.Sprintf("sign with a key that has the role %s, or give %s that role in the trust file", role, id.ID),
			"%s signed it, who is not trusted for the role %s", id.ID, role)
	}
	if !matchesAny(id.Repositories, c.Repository) {
		return fail(CodeRepository, fmt.Sprintf("give %s the repository in the trust file", id.ID),
			"%s signed it, who is not trusted in %s", id.ID, c.Repository)
	}
	// Without evidence of when it was signed, the key must be good at the time
	// of the question.
	at := signed.At
	if signed.By == NoTime {
		at = c.Now
		if !id.DistrustAfter.IsZero() {
			return fail(CodeWindow, "sign again with another key, and with a timestamp",
				"%s signed it, whose key is distrusted after %s, and nothing shows that it was signed before", id.ID, id.DistrustAfter.Format(time.RFC3339))
		}
	}
	switch {
	case !id.NotBefore.IsZero() && at.Before(id.NotBefore):
		return fail(CodeWindow, "sign again, or correct notBefore", "%s signed it, trusted from %s on; it is %s", id.ID, id.NotBefore.Format(time.RFC3339), signed)
	case !id.NotAfter.IsZero() && !at.Before(id.NotAfter):
		return fail(CodeWindow, "sign again with a key that is valid now", "%s signed it, trusted until %s; it is %s", id.ID, id.NotAfter.Format(time.RFC3339), signed)
	case !id.DistrustAfter.IsZero() && at.After(id.DistrustAfter):
		return fail(CodeWindow, "sign again with another key", "%s signed it, distrusted after %s; it is %s", id.ID, id.DistrustAfter.Format(time.RFC3339), signed)
	}
	return nil
}

func matchesAny(patterns []string, repository string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matchRepository(p, repository) })
}

// matchRepository matches as access.Match does; a leaf imports no other.
func matchRepository(pattern, repository string) bool {
	if pattern == "**" {
		return true
	}
	if prefix, ok := strings.CutSuffix(pattern, "/**"); ok {
		return strings.HasPrefix(repository, prefix+"/")
	}
	ok, err := path.Match(pattern, repository)
	return ok && err == nil
}
