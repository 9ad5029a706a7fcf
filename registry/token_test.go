package registry

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/assay-dev/assay/registry/access"
)

func TestTokens(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	grants := []access.Grant{{Role: access.Pusher, Repositories: "credit/**"}}
	token, secret, err := h.CreateToken(ctx, me, "pipeline of the credit team", grants, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, otherSecret, err := h.CreateToken(ctx, me, "other", grants, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	actor, err := h.AuthenticateToken(ctx, secret)
	if err != nil || actor.ID != "token:"+token.ID || actor.Authorize(access.Push, "credit/scorer") != nil || actor.Authorize(access.Push, "other") == nil {
		t.Errorf("the token stands for %+v, %v", actor, err)
	}
	// The secret is nowhere in what is stored, and its name not in the log.
	for k, v := range h.db.Rows() {
		if strings.Contains(v, secret) || strings.Contains(v, secret[len(secret)-20:]) {
			t.Errorf("row %q holds the secret", k)
		}
		if familyOf([]byte(k)) == "leaf" && strings.Contains(v, "pipeline") {
			t.Errorf("the log holds the token's name: %s", v)
		}
	}
	// No secret that differs in a byte stands for anybody.
	for i := range secret {
		bad := []byte(secret)
		bad[i] ^= 1
		if a, err := h.AuthenticateToken(ctx, string(bad)); !errors.Is(err, access.ErrUnauthenticated) || a.ID != "" {
			t.Errorf("%q stands for %+v, %v", bad, a, err)
		}
	}
	for _, bad := range []string{"", "assay_", "assay_x_y", secret + "x", strings.Replace(secret, token.ID, other.ID, 1)} {
		if _, err := h.AuthenticateToken(ctx, bad); !errors.Is(err, access.ErrUnauthenticated) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	h.advance(time.Hour)
	if _, err := h.AuthenticateToken(ctx, secret); !errors.Is(err, access.ErrUnauthenticated) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an hour later: %v", err)
	}
	if _, err := h.AuthenticateToken(ctx, otherSecret); err != nil {
		t.Errorf("the other one: %v", err)
	}
	if revoked, err := h.RevokeToken(ctx, me, other.ID); err != nil || revoked.Revoked.IsZero() {
		t.Errorf("revoking: %+v, %v", revoked, err)
	}
	if _, err := h.RevokeToken(ctx, me, other.ID); err != nil {
		t.Errorf("revoking again: %v", err)
	}
	if _, err := h.AuthenticateToken(ctx, otherSecret); !errors.Is(err, access.ErrUnauthenticated) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked token: %v", err)
	}
	if list, err := h.Tokens(ctx, me); err != nil || len(list) != 2 {
		t.Errorf("%d tokens, %v", len(list), err)
	}

	for name, bad := range map[string]struct {
		name   string
		grants []access.Grant
		ttl    time.Duration
	}{
		"for ever":   {"x", grants, 10 * MaxTokenTTL},
		"expired":    {"x", grants, -1},
		"nameless":   {"", grants, time.Hour},
		"for none":   {"x", nil, time.Hour},
		"a new role": {"x", []access.Grant{{Role: "root", Repositories: "**"}}, time.Hour},
		"a bad one":  {"x", []access.Grant{{Role: access.Reader, Repositories: "[a"}}, time.Hour},
	} {
		if _, _, err := h.CreateToken(ctx, me, bad.name, bad.grants, bad.ttl); !errors.Is(err, ErrDocumentInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, role := range []access.Role{access.Reader, access.Pusher, access.Auditor} {
		a := access.Actor{ID: "u", Grants: []access.Grant{{Role: role, Repositories: "**"}}}
		if _, _, err := h.CreateToken(ctx, a, "x", grants, time.Hour); !errors.Is(err, access.ErrDenied) {
			t.Errorf("a %s makes tokens: %v", role, err)
		}
		if _, err := h.RevokeToken(ctx, a, token.ID); !errors.Is(err, access.ErrDenied) {
			t.Errorf("a %s revokes tokens: %v", role, err)
		}
	}
	h.sound()
}

// An actor's uploads are bounded, so that nobody takes what others need.
func TestUploadsOfOneActorAreBounded(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	var last Upload
	for i := range maxUploadsEach {
		u, err := h.StartUpload(ctx, me, "a", StartUpload{})
		if err != nil {
			t.Fatalf("upload %d: %v", i, err)
		}
		last = u
	}
	if _, err := h.StartUpload(ctx, me, "a", StartUpload{}); !errors.Is(err, ErrTooManyUploads) {
		t.Errorf("one more: %v", err)
	}
	if _, err := h.StartUpload(ctx, access.Actor{ID: "other", Grants: me.Grants}, "a", StartUpload{}); err != nil {
		t.Errorf("somebody else's: %v", err)
	}
	if err := h.CancelUpload(ctx, me, "a", last.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.StartUpload(ctx, me, "a", StartUpload{}); err != nil {
		t.Errorf("after one was cancelled: %v", err)
	}
}
