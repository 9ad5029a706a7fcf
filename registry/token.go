package registry

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

const (
	// MaxTokenTTL is how long a token may be valid at most: a secret that
	// nobody renews is one that nobody remembers.
	MaxTokenTTL = 366 * 24 * time.Hour

	// tokenPrefix lets secret scanners recognize a token.
	tokenPrefix = "assay_"
)

// A Token lets a program log in. Its secret is told once, when it is made;
// what is stored is a hash of it.
type Token struct {
	ID      string         `json:"id"`
	Name    string         `json:"name"` // for people; not in the log
	Grants  []access.Grant `json:"grants"`
	Created time.Time      `json:"created"`
	Expires time.Time      `json:"expires"`
	Revoked time.Time      `json:"revoked,omitzero"`
	By      string         `json:"by"` // the actor who made it
}

type tokenRow struct {
	Token
	Hash  []byte `json:"hash"` // SHA-256 of the secret, which has 160 random bits
	Index int64  `json:"index"`
}

var tokenSecret = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// CreateToken makes a token with these grants that expires after ttl, and
// returns it with its secret.
func (r *Registry) CreateToken(ctx context.Context, actor access.Actor, name string, grants []access.Grant, ttl time.Duration) (Token, string, error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Token{}, "", err
	}
	switch {
	case ttl <= 0 || ttl > MaxTokenTTL:
		return Token{}, "", fmt.Errorf("%w: a token is valid for up to %d days, not for %s", ErrDocumentInvalid, MaxTokenTTL/(24*time.Hour), ttl)
	case name == "" || len(name) > 100:
		return Token{}, "", fmt.Errorf("%w: a token has a name of up to 100 bytes, for people to tell it by", ErrDocumentInvalid)
	case len(grants) == 0 || len(grants) > 100:
		return Token{}, "", fmt.Errorf("%w: a token has 1 to 100 grants", ErrDocumentInvalid)
	}
	for _, g := range grants {
		if err := g.Check(); err != nil {
			return Token{}, "", fmt.Errorf("%w: %w", ErrDocumentInvalid, err)
		}
	}
	var id [8]byte
	var random [20]byte
	rand.Read(id[:])
	rand.Read(random[:])
	row := tokenRow{Token: Token{ID: hex.EncodeToString(id[:]), Name: name, Grants: grants, By: actor.ID}}
	secret := tokenPrefix + row.ID + "_" + tokenSecret.EncodeToString(random[:])
	sum := sha256.Sum256([]byte(secret))
	row.Hash = sum[:]
	err := r.submit(ctx, func(tx *txn) error {
		row.Created, row.Expires, row.Index = tx.now, tx.now.Add(ttl), tx.index
		tx.put(key("token", row.ID), row)
		tx.emit(Event{Kind: EventTokenCreate, Actor: actor.ID, Request: actor.RequestID, Token: row.ID})
		return nil
	})
	return row.Token, secret, err
}

// RevokeToken makes a token useless from now on. It stays in the record.
func (r *Registry) RevokeToken(ctx context.Context, actor access.Actor, id string) (t Token, err error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Token{}, err
	}
	err = r.submit(ctx, func(tx *txn) error {
		var row tokenRow
		if ok, err := load(tx, key("token", id), &row); err != nil || !ok {
			return orElse(err, fmt.Errorf("%w: no token has the id %.64q", ErrUnknown, id))
		}
		t = row.Token
		if !row.Revoked.IsZero() {
			return nil
		}
		row.Revoked = tx.now
		t = row.Token
		tx.put(key("token", id), row)
		tx.emit(Event{Kind: EventTokenRevoke, Actor: actor.ID, Request: actor.RequestID, Token: id})
		return nil
	})
	return t, err
}

// Tokens lists all tokens there ever were, by id.
func (r *Registry) Tokens(ctx context.Context, actor access.Actor) (list []Token, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		for row, err := range rd.Scan(under("token")) {
			if err != nil {
				return err
			}
			var t tokenRow
			if err := decode(row, &t); err != nil {
				return err
			}
			list = append(list, t.Token)
		}
		return nil
	})
	return list, err
}

// IsToken reports whether a secret has the form of a token.
func IsToken(secret string) bool { return strings.HasPrefix(secret, tokenPrefix) }

// AuthenticateToken says who a token's secret stands for. Every reason why it
// stands for nobody is [access.ErrUnauthenticated].
func (r *Registry) AuthenticateToken(ctx context.Context, secret string) (access.Actor, error) {
	nobody := fmt.Errorf("%w: the token is not known here", access.ErrUnauthenticated)
	id, _, ok := strings.Cut(strings.TrimPrefix(secret, tokenPrefix), "_")
	if !ok || !IsToken(secret) || len(id) != 16 {
		return access.Actor{}, nobody
	}
	var row tokenRow
	err := r.view(ctx, func(rd store.Reader) (err error) {
		ok, err = load(rd, key("token", id), &row)
		return err
	})
	if err != nil {
		return access.Actor{}, err
	}
	sum := sha256.Sum256([]byte(secret))
	switch {
	case !ok || subtle.ConstantTimeCompare(sum[:], row.Hash) != 1:
		return access.Actor{}, nobody
	case !row.Revoked.IsZero():
		return access.Actor{}, fmt.Errorf("%w: the token %s was revoked", access.ErrUnauthenticated, id)
	case !r.clock().Before(row.Expires):
		return access.Actor{}, fmt.Errorf("%w: the token %s expired at %s", access.ErrUnauthenticated, id, row.Expires.Format(time.RFC3339))
	}
	return access.Actor{ID: "token:" + id, Grants: row.Grants}, nil
}

// ActorID is the opaque id under which a user appears in the log: who knows
// the server's secret and the name can tell whose it is, and nobody else.
func (r *Registry) ActorID(user string) string {
	k, err := hkdf.Key(sha256.New, r.identity.uploads, nil, "assay actor ids", 32)
	if err != nil {
		panic("registry: " + err.Error()) // the lengths are constants
	}
	m := hmac.New(sha256.New, k)
	m.Write([]byte(user))
	return "user:" + hex.EncodeToString(m.Sum(nil)[:8])
}
