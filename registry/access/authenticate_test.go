package access

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// quickly makes the line of a user with as little work as bcrypt takes.
func quickly(t *testing.T, user, password string) string {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return user + ":" + string(hash)
}

func TestAuthenticate(t *testing.T) {
	line := quickly(t, "alice", "correct horse")
	users, err := ParseUsers([]byte("# people\n" + line + "\n\n"))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := ParseRules([]byte("version: 1\ngrants:\n- users: [alice]\n  role: pusher\n  repositories: [credit/**]\n- users: ['*']\n  role: reader\n  repositories: ['**']\n"))
	if err != nil {
		t.Fatal(err)
	}
	a := &Authenticator{
		Users: func() *Users { return users }, Rules: func() *Rules { return rules },
		IsToken: func(s string) bool { return strings.HasPrefix(s, "assay_") },
		Token: func(_ context.Context, s string) (Actor, error) {
			if s == "assay_good" {
				return Actor{ID: "token:1"}, nil
			}
			return Actor{}, ErrUnauthenticated
		},
		ActorID: func(user string) string { return "user:" + strings.ToUpper(user) },
	}
	for header, want := range map[string]string{
		"":                              "",
		basic("alice", "correct horse"): "user:ALICE",
		strings.Replace(basic("alice", "correct horse"), "Basic", "bAsIc", 1): "user:ALICE", // RFC 9110: the scheme is case-insensitive
		basic("alice", "assay_good"):                                          "token:1",
		basic("", "assay_good"):                                               "token:1",
		"Bearer assay_good":                                                   "token:1",
	} {
		got, err := a.Authenticate(t.Context(), header)
		if err != nil || got.ID != want {
			t.Errorf("%q is %q, %v", header, got.ID, err)
		}
	}
	alice, _ := a.Authenticate(t.Context(), basic("alice", "correct horse"))
	if alice.Authorize(Push, "credit/scorer") != nil || alice.Authorize(Pull, "other") != nil || alice.Authorize(Push, "other") == nil {
		t.Errorf("alice has %+v", alice.Grants)
	}
	for _, header := range []string{
		basic("alice", "wrong"), basic("alice", ""), basic("bob", "correct horse"), basic("", ""), basic("alice", "assay_bad"),
		basic("alice", strings.Repeat("x", 100)), "Basic !", "Basic", "Bearer", "Bearer assay_bad", "Digest x", " ", "Basic " + base64.StdEncoding.EncodeToString([]byte("alice")),
	} {
		got, err := a.Authenticate(t.Context(), header)
		if !errors.Is(err, ErrUnauthenticated) || got.ID != "" || len(got.Grants) != 0 {
			t.Errorf("%q is %+v, %v", header, got, err)
		}
	}
	// What is remembered ends with the password's hash.
	if users, err = ParseUsers([]byte(quickly(t, "alice", "another one"))); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(t.Context(), basic("alice", "correct horse")); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("the old password: %v", err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got, err := a.Authenticate(t.Context(), basic("alice", "another one")); err != nil || got.ID != "user:ALICE" {
				t.Errorf("at the same time: %+v, %v", got, err)
			}
		})
	}
	wg.Wait()
}

func TestBadFiles(t *testing.T) {
	for name, file := range map[string]string{
		"md5":       "alice:$apr1$x$y",
		"plain":     "alice:secret",
		"no hash":   "alice",
		"no name":   ":$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuabcdefghijkl",
		"a pattern": "*:$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuabcdefghijkl",
	} {
		if _, err := ParseUsers([]byte(file)); err == nil {
			t.Errorf("users, %s: accepted", name)
		}
	}
	line, err := HashPassword("alice", "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseUsers([]byte(line)); err != nil {
		t.Errorf("a line of ours: %v", err)
	}
	if _, err := ParseUsers([]byte(line + "\n" + line)); err == nil {
		t.Error("a user who is there twice was accepted")
	}
	for name, file := range map[string]string{
		"nothing":     "",
		"version":     "version: 2",
		"a misspelt":  "version: 1\ngrant: []",
		"role":        "version: 1\ngrants: [{users: [a], role: root, repositories: ['**']}]",
		"no pattern":  "version: 1\ngrants: [{users: [a], role: reader}]",
		"bad pattern": "version: 1\ngrants: [{users: [a], role: reader, repositories: ['[']}]",
		"no users":    "version: 1\ngrants: [{role: reader, repositories: ['**']}]",
		"two":         "version: 1\n---\nversion: 1\n",
	} {
		if _, err := ParseRules([]byte(file)); err == nil {
			t.Errorf("rules, %s: accepted", name)
		}
	}
	if _, err := HashPassword("alice", "short"); err == nil {
		t.Error("a short password was accepted")
	}
}

// Whatever a header holds, nobody gets in by it.
func FuzzAuthenticate(f *testing.F) {
	users, _ := ParseUsers(nil)
	rules, _ := ParseRules([]byte("version: 1\ngrants:\n- users: ['*']\n  role: operator\n  repositories: ['**']\n"))
	a := &Authenticator{
		Users: func() *Users { return users }, Rules: func() *Rules { return rules },
		IsToken: func(s string) bool { return true },
		Token:   func(context.Context, string) (Actor, error) { return Actor{}, ErrUnauthenticated },
		ActorID: func(user string) string { return user },
	}
	for _, seed := range []string{"", "Basic", basic("a", "b"), "Bearer x", "basic  " + basic("a", "b")[6:]} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		if got, _ := a.Authenticate(t.Context(), header); got.ID != "" || len(got.Grants) > 0 {
			t.Errorf("%q is %+v", header, got)
		}
	})
}
