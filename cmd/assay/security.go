package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
)

// security is who may reach the server, and how.
type security struct {
	tls           *reloading[*tls.Certificate] // nil: in clear
	authenticator *access.Authenticator        // nil: everybody on this machine may do everything
}

// check refuses settings that would leave a server open to strangers.
func (opt serveOptions) check() error {
	if (opt.tlsCert == "") != (opt.tlsKey == "") {
		return usagef("--tls-cert and --tls-key go together")
	}
	if (opt.htpasswd == "") != (opt.accessFile == "") {
		return remedy(usagef("--htpasswd and --access-file go together: the one says who somebody is, the other what they may do"),
			"write the line of a user with 'assay access passwd NAME', and see 'assay serve --help' for the access file")
	}
	for _, addr := range []string{opt.addr, opt.grpcAddr} {
		if isLoopback(addr) {
			continue
		}
		if opt.htpasswd == "" && !opt.unsafeOpen {
			return remedy(usagef("%s is not a loopback address, and nobody has to log in", addr),
				"give --htpasswd and --access-file, or --unsafe-no-authentication if everybody who can connect may do everything")
		}
		if opt.htpasswd != "" && opt.tlsCert == "" && !opt.unsafeClear {
			return remedy(usagef("%s is not a loopback address, and passwords would cross the network in clear", addr),
				"give --tls-cert and --tls-key, or --unsafe-no-tls if a proxy in front does TLS")
		}
	}
	return nil
}

func openSecurity(opt serveOptions, log *slog.Logger) (s security, err error) {
	if opt.tlsCert != "" {
		s.tls, err = newReloading(log, func(files [][]byte) (*tls.Certificate, error) {
			pair, err := tls.X509KeyPair(files[0], files[1])
			return &pair, err
		}, opt.tlsCert, opt.tlsKey)
		if err != nil {
			return s, remedy(err, "--tls-cert is a PEM file with the server's certificate and those it rests on, --tls-key its private key")
		}
	}
	if opt.htpasswd == "" {
		return s, nil
	}
	users, err := newReloading(log, func(files [][]byte) (*access.Users, error) { return access.ParseUsers(files[0]) }, opt.htpasswd)
	if err != nil {
		return s, remedy(err, "make one with 'assay access passwd NAME >> users.htpasswd'")
	}
	rules, err := newReloading(log, func(files [][]byte) (*access.Rules, error) { return access.ParseRules(files[0]) }, opt.accessFile)
	if err != nil {
		return s, remedy(err, "see 'assay serve --help' for the access file")
	}
	s.authenticator = &access.Authenticator{Users: users.get, Rules: rules.get, IsToken: registry.IsToken}
	return s, nil
}

// config is the TLS configuration for a listener with these protocols.
func (s security) config(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.tls.get(), nil
		},
	}
}

// know tells the authenticator of the registry, which is opened later.
func (s security) know(r *registry.Registry) {
	if s.authenticator != nil {
		s.authenticator.Token = r.AuthenticateToken
		s.authenticator.ActorID = r.ActorID
	}
}

// who finds out who sent an Authorization header.
func (s security) who(ctx context.Context, header string) (access.Actor, error) {
	if s.authenticator == nil {
		return access.Anonymous(true), nil
	}
	return s.authenticator.Authenticate(ctx, header)
}

func (s security) http(r *http.Request) (access.Actor, error) {
	return s.who(r.Context(), r.Header.Get("Authorization"))
}

func (s security) rpc(ctx context.Context) (access.Actor, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return s.who(ctx, strings.Join(md.Get("authorization"), ","))
}

// audited lets those read who may audit the registry as a whole.
func (s security) audited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		actor, err := s.http(r)
		if err == nil {
			err = actor.Authorize(access.Audit, "")
		}
		switch {
		case err == nil:
			next.ServeHTTP(w, r)
		case actor.ID == "":
			w.Header().Set("WWW-Authenticate", `Basic realm="assay"`)
			http.Error(w, "log in to read this", http.StatusUnauthorized)
		default:
			http.Error(w, err.Error(), http.StatusForbidden)
		}
	})
}
