package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

const (
	// rememberFor is how long a password that was right need not be hashed
	// again: bcrypt is slow on purpose, and clients send their password with
	// every request.
	rememberFor = 5 * time.Minute

	// rememberMost bounds what is remembered.
	rememberMost = 10_000
)

// An Authenticator finds out who sent a request, from its Authorization
// header (RFC 9110, section 11.6.2): a user of the htpasswd file by "Basic", a
// token by "Basic", whatever the user name, or by "Bearer". Whoever sends
// none is nobody.
//
// Methods may be called concurrently.
type Authenticator struct {
	// Users and Rules return what is in force now.
	Users func() *Users
	Rules func() *Rules

	// IsToken tells a token from a password, and Token says who it stands for.
	IsToken func(secret string) bool
	Token   func(ctx context.Context, secret string) (Actor, error)

	// ActorID makes the opaque id of a user.
	ActorID func(user string) string

	once  sync.Once
	salt  [32]byte      // of what is remembered
	slots chan struct{} // bounds the hashing at one time

	mu    sync.Mutex
	known map[[sha256.Size]byte]time.Time // guarded by mu; until when
}

func (a *Authenticator) init() {
	rand.Read(a.salt[:])
	a.slots = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)))
	a.known = map[[sha256.Size]byte]time.Time{}
}

// Authenticate says who sent the header. The zero Actor is nobody. An error is
// [ErrUnauthenticated] if the credentials are wrong.
func (a *Authenticator) Authenticate(ctx context.Context, header string) (Actor, error) {
	a.once.Do(a.init)
	if header == "" {
		return Actor{}, nil
	}
	scheme, value, _ := strings.Cut(header, " ")
	switch strings.ToLower(scheme) {
	case "bearer":
		return a.Token(ctx, strings.TrimSpace(value))
	case "basic":
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
		user, secret, ok := strings.Cut(string(raw), ":")
		if err != nil || !ok {
			return Actor{}, fmt.Errorf("%w: the Authorization header is not USER:PASSWORD in base64", ErrUnauthenticated)
		}
		if a.IsToken(secret) {
			return a.Token(ctx, secret)
		}
		if err := a.password(ctx, user, secret); err != nil {
			return Actor{}, err
		}
		return Actor{ID: a.ActorID(user), Grants: a.Rules().Grants(user)}, nil
	}
	return Actor{}, fmt.Errorf("%w: authorization scheme %.20q is unknown: use Basic or Bearer", ErrUnauthenticated, scheme)
}

// dummy is compared with where there is no such user, so that the time an
// answer takes does not tell.
var dummy = sync.OnceValue(func() []byte {
	hash, err := bcrypt.GenerateFromPassword([]byte("nobody"), bcrypt.DefaultCost)
	if err != nil {
		panic("access: " + err.Error()) // the arguments are constants
	}
	return hash
})

func (a *Authenticator) password(ctx context.Context, user, password string) error {
	hash, ok := a.Users().hash(user)
	if !ok {
		hash = dummy()
	}
	h := sha256.New()
	h.Write(a.salt[:])
	for _, part := range [][]byte{[]byte(user), hash, []byte(password)} {
		sum := sha256.Sum256(part)
		h.Write(sum[:])
	}
	var name [sha256.Size]byte
	h.Sum(name[:0])
	now := time.Now()
	a.mu.Lock()
	until, known := a.known[name]
	a.mu.Unlock()
	if known && now.Before(until) {
		return nil
	}
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := bcrypt.CompareHashAndPassword(hash, []byte(password))
	if err != nil && !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) && !errors.Is(err, bcrypt.ErrPasswordTooLong) {
		return fmt.Errorf("%w: the password of %q cannot be checked: %v", ErrUnauthenticated, user, err)
	}
	if err != nil || !ok {
		return fmt.Errorf("%w: user name or password is wrong", ErrUnauthenticated)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= rememberMost {
		clear(a.known)
	}
	a.known[name] = now.Add(rememberFor)
	return nil
}
