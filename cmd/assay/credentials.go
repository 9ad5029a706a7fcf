package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// tokenVariable holds a token for --server, for pipelines that have no place
// for a file.
const tokenVariable = "ASSAY_TOKEN"

// credential is what to log in to a host with: a token of the environment if
// the host is --server, or what 'oras login', 'docker login' or 'assay login'
// stored.
func (g *globals) credential(ctx context.Context, host string) (auth.Credential, error) {
	if token := os.Getenv(tokenVariable); token != "" {
		if u, err := g.serverURL(); err == nil && u.Host == host {
			return auth.Credential{Username: "token", Password: token}, nil
		}
	}
	store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return auth.EmptyCredential, err
	}
	return credentials.Credential(store)(ctx, host)
}

// authorize puts credentials on a request to the REST interface.
func (g *globals) authorize(req *http.Request) error {
	c, err := g.credential(req.Context(), req.URL.Host)
	if err != nil || c == auth.EmptyCredential {
		return err
	}
	if req.URL.Scheme != "https" && !isLoopback(req.URL.Host) {
		return remedy(fmt.Errorf("credentials for %s would cross the network in clear", req.URL.Host), "name the server as https://%s", req.URL.Host)
	}
	if c.AccessToken != "" {
		req.Header.Set("Authorization", "Bearer "+c.AccessToken)
		return nil
	}
	req.SetBasicAuth(c.Username, c.Password)
	return nil
}

func newLoginCommand(g *globals) *cobra.Command {
	var user string
	c := &cobra.Command{
		Use:   "login [HOST]",
		Short: "Store a password or token for a registry",
		Long: `Check a password or token that is read from the standard input, and store it
where docker and oras look for it too (or in the credential helper that is
configured there). A token goes with any user name.

A pipeline can leave this out and put a token into ` + tokenVariable + `.`,
		Example: "  assay login --username alice registry.example < password\n  echo $TOKEN | assay login",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := g.serverURL()
			if err != nil {
				return err
			}
			host := u.Host
			if len(args) == 1 {
				host = args[0]
			}
			raw, err := io.ReadAll(io.LimitReader(g.in, 1<<12))
			if err != nil {
				return err
			}
			secret := strings.TrimRight(string(raw), "\r\n")
			if secret == "" {
				return remedy(usagef("no password was given"), "write it to the standard input: assay login < password")
			}
			store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{AllowPlaintextPut: true})
			if err != nil {
				return err
			}
			reg, err := remote.NewRegistry(host)
			if err != nil {
				return usagef("%q is no host of a registry: write HOST or HOST:PORT", host)
			}
			reg.PlainHTTP = g.plainHTTP || isLoopback(host) && !(host == u.Host && u.Scheme == "https")
			if err := credentials.Login(cmd.Context(), store, reg, auth.Credential{Username: user, Password: secret}); err != nil {
				return g.explain(err, "logging in to "+host)
			}
			fmt.Fprintf(g.err, "logged in to %s\n", host)
			return nil
		},
	}
	c.Flags().StringVarP(&user, "username", "u", "token", "the user; any will do with a token")
	return c
}
