package verifytest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/go-openapi/runtime"
	"github.com/go-openapi/strfmt"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	tilespb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	tilesnote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	_ "github.com/sigstore/rekor/pkg/types/dsse/v0.0.1" // what is logged
	_ "github.com/sigstore/rekor/pkg/types/hashedrekord/v0.0.1"
	rekorutil "github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgtlog "github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/assay-dev/assay/verify/attest"
)

// rekorOrigin is the host that a trusted root says the log is at, and thereby
// the origin of its checkpoints.
const rekorOrigin = "rekor.example"

// A Rekor is a transparency log in memory, with a real Merkle tree. As an
// http.Handler it is Rekor v1 (DSSE entries) and v2 (hashedrekord entries), as
// far as signers ask: POST of an entry.
type Rekor struct {
	// Now is what a log of version 1 states; zero is the real time.
	Now time.Time

	key    *ecdsa.PrivateKey
	signer *signature.ECDSASignerVerifier

	mu     sync.Mutex
	size   int64       // guarded by mu
	hashes []tlog.Hash // guarded by mu
}

// NewRekor makes a log with some entries of others.
func NewRekor(t testing.TB, now time.Time) *Rekor {
	t.Helper()
	l := &Rekor{Now: now, key: newKey(t)}
	var err error
	if l.signer, err = signature.LoadECDSASignerVerifier(l.key, crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := l.add(fmt.Appendf(nil, "entry %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// id is the log's: the hash of its public key.
func (l *Rekor) id() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(l.key.Public())
	sum := sha256.Sum256(der)
	return sum[:], err
}

// log is how a trusted root names it.
func (l *Rekor) log(t testing.TB, from, to time.Time) map[string]*root.TransparencyLog {
	t.Helper()
	id, err := l.id()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*root.TransparencyLog{hex.EncodeToString(id): {
		BaseURL: "https://" + rekorOrigin, ID: id, ValidityPeriodStart: from, ValidityPeriodEnd: to,
		HashFunc: crypto.SHA256, PublicKey: l.key.Public(), SignatureHashFunc: crypto.SHA256,
	}}
}

// Impostor is another log with the same id: what it signs is signed with
// another key.
func (l *Rekor) Impostor(t testing.TB) *Rekor {
	t.Helper()
	other := NewRekor(t, l.Now)
	return &Rekor{Now: l.Now, key: l.key, signer: other.signer, size: other.size, hashes: other.hashes}
}

// ReadHashes implements tlog.HashReader. l.mu is held.
func (l *Rekor) ReadHashes(at []int64) (list []tlog.Hash, err error) {
	for _, i := range at {
		list = append(list, l.hashes[i])
	}
	return list, nil
}

// An included entry is one with its proof.
type included struct {
	index, size int64
	root        tlog.Hash
	proof       tlog.RecordProof
}

func (l *Rekor) add(body []byte) (e included, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hashes, err := tlog.StoredHashes(l.size, body, l)
	if err != nil {
		return included{}, err
	}
	l.hashes = append(l.hashes, hashes...)
	e.index = l.size
	l.size++
	e.size = l.size
	if e.root, err = tlog.TreeHash(l.size, l); err != nil {
		return included{}, err
	}
	e.proof, err = tlog.ProveRecord(l.size, e.index, l)
	return e, err
}

// ServeHTTP implements http.Handler.
func (l *Rekor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	handle := map[string]func(context.Context, []byte) (etag string, answer []byte, err error){
		"POST /api/v1/log/entries": l.addV1,
		"POST /api/v2/log/entries": l.addV2,
	}[r.Method+" "+r.URL.Path]
	if handle == nil {
		http.NotFound(w, r)
		return
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	etag, answer, err := handle(r.Context(), raw)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if etag != "" {
		w.Header().Set("ETag", etag)
		w.Header().Set("Location", r.URL.Path+"/"+etag)
	}
	w.WriteHeader(http.StatusCreated)
	w.Write(answer)
}

// addV1 answers with a signed promise and a proof.
func (l *Rekor) addV1(ctx context.Context, raw []byte) (etag string, answer []byte, err error) {
	proposed, err := models.UnmarshalProposedEntry(bytes.NewReader(raw), runtime.JSONConsumer())
	if err != nil {
		return "", nil, err
	}
	entry, err := types.UnmarshalEntry(proposed) // checks the signature, as a real one does
	if err != nil {
		return "", nil, err
	}
	body, err := types.CanonicalizeEntry(ctx, entry)
	if err != nil {
		return "", nil, err
	}
	e, err := l.add(body)
	if err != nil {
		return "", nil, err
	}
	id, err := l.id()
	if err != nil {
		return "", nil, err
	}
	at, logID, encoded, rootHash := orReal(l.Now).Unix(), hex.EncodeToString(id), base64.StdEncoding.EncodeToString(body), hex.EncodeToString(e.root[:])
	promised, err := attest.Marshal(sgtlog.RekorPayload{Body: encoded, IntegratedTime: at, LogIndex: e.index, LogID: logID})
	if err != nil {
		return "", nil, err
	}
	promise, err := l.signer.SignMessage(bytes.NewReader(promised))
	if err != nil {
		return "", nil, err
	}
	checkpoint, err := rekorutil.CreateAndSignCheckpoint(ctx, rekorOrigin, 1, uint64(e.size), e.root[:], l.signer)
	if err != nil {
		return "", nil, err
	}
	signed := string(checkpoint)
	proof := &models.InclusionProof{LogIndex: &e.index, TreeSize: &e.size, RootHash: &rootHash, Checkpoint: &signed, Hashes: []string{}}
	for _, h := range e.proof {
		proof.Hashes = append(proof.Hashes, hex.EncodeToString(h[:]))
	}
	leaf := tlog.RecordHash(body)
	etag = hex.EncodeToString(leaf[:])
	answer, err = json.Marshal(models.LogEntry{etag: models.LogEntryAnon{
		Body: encoded, IntegratedTime: &at, LogID: &logID, LogIndex: &e.index,
		Verification: &models.LogEntryAnonVerification{InclusionProof: proof, SignedEntryTimestamp: strfmt.Base64(promise)},
	}})
	return etag, answer, err
}

// addV2 answers with a proof, and with no time.
func (l *Rekor) addV2(ctx context.Context, raw []byte) (etag string, answer []byte, err error) {
	var q tilespb.CreateEntryRequest
	if err := protojson.Unmarshal(raw, &q); err != nil {
		return "", nil, err
	}
	asked := q.GetHashedRekordRequestV002()
	if asked == nil {
		return "", nil, fmt.Errorf("only hashedrekord 0.0.2 is logged")
	}
	entry, err := protojson.Marshal(&tilespb.Entry{ApiVersion: "0.0.2", Kind: "hashedrekord", Spec: &tilespb.Spec{Spec: &tilespb.Spec_HashedRekordV002{
		HashedRekordV002: &tilespb.HashedRekordLogEntryV002{
			Data: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: asked.Digest}, Signature: asked.Signature,
		},
	}}})
	if err != nil {
		return "", nil, err
	}
	body, err := attest.Marshal(json.RawMessage(entry))
	if err != nil {
		return "", nil, err
	}
	e, err := l.add(body)
	if err != nil {
		return "", nil, err
	}
	signer, err := tilesnote.NewNoteSigner(ctx, rekorOrigin, l.signer)
	if err != nil {
		return "", nil, err
	}
	checkpoint, err := note.Sign(&note.Note{Text: string(log.Checkpoint{Origin: rekorOrigin, Size: uint64(e.size), Hash: e.root[:]}.Marshal())}, signer)
	if err != nil {
		return "", nil, err
	}
	id, err := l.id()
	if err != nil {
		return "", nil, err
	}
	proof := &protorekor.InclusionProof{LogIndex: e.index, TreeSize: e.size, RootHash: e.root[:], Checkpoint: &protorekor.Checkpoint{Envelope: string(checkpoint)}}
	for _, h := range e.proof {
		proof.Hashes = append(proof.Hashes, h[:])
	}
	answer, err = protojson.Marshal(&protorekor.TransparencyLogEntry{
		LogIndex: e.index, LogId: &protocommon.LogId{KeyId: id}, KindVersion: &protorekor.KindVersion{Kind: "hashedrekord", Version: "0.0.2"},
		InclusionProof: proof, CanonicalizedBody: body,
	})
	return "", answer, err
}
