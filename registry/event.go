package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/tlog"
	"github.com/assay-dev/assay/verify/attest"
)

// Kinds of events.
const (
	EventManifestPut    = "manifest.put"
	EventManifestDelete = "manifest.delete"
	EventTagMove        = "tag.move"
	EventTagDelete      = "tag.delete"
	EventBlobDelete     = "blob.delete"
	EventBlobCollect    = "blob.collect"
	EventQuarantine     = "content.quarantine"
	EventHeal           = "content.heal"
	EventTrust          = "trust.apply"
	EventPolicy         = "policy.apply"
	EventFact           = "fact.change" // a statement came out otherwise under another trust file
	EventDecision       = "decision"
	EventBreakGlass     = "decision.break-glass" // an allow without the approvals that are required
	EventPersonEnroll   = "person.enroll"
	EventPersonErase    = "person.erase"
	EventTokenCreate    = "token.create"
	EventTokenRevoke    = "token.revoke"
)

// An Event is a leaf of the log: what happened, when, on whose behalf, to
// which content. It has no names of people and no free text, because the log
// forgets nothing: the actor is an opaque id, and a reason is the salted hash
// of a text that can be erased.
type Event struct {
	Kind       string    `json:"kind"`
	At         time.Time `json:"at"`
	Actor      string    `json:"actor"`
	Request    string    `json:"request,omitempty"`
	Repository string    `json:"repository,omitempty"`

	// Digests are what was changed, and Subjects what that speaks of: in
	// clear, so that "all there is about this digest" can be proved by
	// reading the log.
	Digests  []digest.Digest `json:"digests,omitempty"`
	Subjects []digest.Digest `json:"subjects,omitempty"`

	Tags    []TagChange `json:"tags,omitempty"`
	Version int         `json:"version,omitempty"`

	// Artifact is the artifact type or predicate type of what was put.
	Artifact string `json:"artifact,omitempty"`

	// Outcome is "allow" or "deny" for decisions, "verified" or a reason code
	// for statements.
	Outcome     string `json:"outcome,omitempty"`
	Environment string `json:"environment,omitempty"`

	// Token is the id of the token that was made or revoked.
	Token string `json:"token,omitempty"`

	// Person is the opaque id of a person whose name was recorded or erased.
	Person string `json:"person,omitempty"`

	// ReasonHash is the salted hash of a text in an erasable row: a reason, or
	// the name of a person.
	ReasonHash string `json:"reasonHash,omitempty"`
}

// A TagChange is the move of one tag.
type TagChange struct {
	Tag  string        `json:"tag"`
	From digest.Digest `json:"from,omitempty"`
	To   digest.Digest `json:"to,omitempty"`
}

// encodeLeaf returns the canonical bytes of an event.
func encodeLeaf(e Event) ([]byte, error) {
	leaf, err := attest.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding an event: %w", err)
	}
	if len(leaf) > tlog.MaxLeaf {
		return nil, fmt.Errorf("%w: its log leaf would have %d bytes, more than %d", ErrManifestTooLarge, len(leaf), tlog.MaxLeaf)
	}
	return leaf, nil
}

// ParseLeaf reads the bytes of a leaf, strictly.
func ParseLeaf(leaf []byte) (Event, error) {
	var e Event
	if err := attest.Unmarshal(leaf, &e); err != nil {
		return Event{}, fmt.Errorf("log leaf: %w", err)
	}
	return e, nil
}

// hashReason returns the row that holds a free text and the salted hash of it
// that goes into the log. The salt is drawn before a change runs, since a
// change may run twice.
func hashReason(text string) (reasonRow, string) {
	row := reasonRow{Text: text, Salt: make([]byte, 16)}
	rand.Read(row.Salt)
	sum := sha256.Sum256(append(row.Salt, text...))
	return row, hex.EncodeToString(sum[:])
}
