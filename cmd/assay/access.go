package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry/access"
)

func newAccessCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "access",
		Short: "Users, and tokens that programs log in with",
		Long: `Users, and tokens that programs log in with. Users are in the files that
'assay serve --htpasswd' and '--access-file' name; tokens are made by the
running server.`,
	}
	token := &cobra.Command{
		Use:   "token",
		Short: "Tokens that programs log in with",
		Long:  "Tokens that programs log in with: scoped, expiring, and stored as hashes.",
	}
	token.AddCommand(newTokenCreateCommand(g), newTokenListCommand(g), newTokenRevokeCommand(g))
	c.AddCommand(newPasswdCommand(g), newWhoamiCommand(g), token)
	return c
}

func newPasswdCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "passwd NAME",
		Short: "Print the htpasswd line of a user",
		Long: `Print the line of a user for the file of 'assay serve --htpasswd'. The password
is read from the standard input, and is hashed by bcrypt.`,
		Example: "  assay access passwd alice < password >> users.htpasswd",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := io.ReadAll(io.LimitReader(g.in, 1<<12))
			if err != nil {
				return err
			}
			line, err := access.HashPassword(args[0], strings.TrimRight(string(raw), "\r\n"))
			if err != nil {
				return remedy(err, "write the password to the standard input")
			}
			_, err = fmt.Fprintln(g.out, line)
			return err
		},
	}
}

func newWhoamiCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "whoami",
		Short:   "Show who you are to the server, and what you may do",
		Long:    "Show the opaque id under which you appear in the log of the server, and your roles.",
		Example: "  assay access whoami",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var a pb.GetSelfResponse
			if err := g.api(cmd.Context(), "GET", "self", nil, nil, &a); err != nil {
				return err
			}
			return g.printProto(&a, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", a.Actor, grantText(a.Grants)) })
		},
	}
}

func grantText(grants []*pb.Grant) string {
	if len(grants) == 0 {
		return "may do nothing"
	}
	var list []string
	for _, g := range grants {
		list = append(list, g.Role+" in "+g.Repositories)
	}
	return strings.Join(list, ", ")
}

func newTokenCreateCommand(g *globals) *cobra.Command {
	var grants []string
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token and print its secret",
		Long: `Make a token that has a role in some repositories and expires. Its secret is
printed once: the server keeps a hash of it. Use it as the password of any
user name, or as a bearer token.`,
		Example: "  assay access token create ci --grant pusher:credit/** --grant reader:** --ttl 720h",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := &pb.CreateTokenRequest{Name: args[0], Ttl: durationpb.New(ttl)}
			for _, s := range grants {
				role, pattern, ok := strings.Cut(s, ":")
				if !ok {
					return usagef("--grant %q: write ROLE:REPOSITORIES, for example pusher:credit/**", s)
				}
				q.Grants = append(q.Grants, &pb.Grant{Role: role, Repositories: pattern})
			}
			if len(q.Grants) == 0 {
				return usagef("a token that may do nothing is of no use: give --grant ROLE:REPOSITORIES")
			}
			var a pb.CreateTokenResponse
			if err := g.api(cmd.Context(), "POST", "tokens", nil, q, &a); err != nil {
				return err
			}
			return g.printProto(&a, func(w io.Writer) {
				fmt.Fprintln(w, a.Secret)
				if !g.quiet {
					fmt.Fprintf(g.err, "token %s (%s): %s, until %s; the secret is not shown again\n",
						a.Token.Id, a.Token.Name, grantText(a.Token.Grants), a.Token.ExpiresAt.AsTime().Format(time.RFC3339))
				}
			})
		},
	}
	c.Flags().StringSliceVar(&grants, "grant", nil, "ROLE:REPOSITORIES; may be repeated")
	c.Flags().DurationVar(&ttl, "ttl", 90*24*time.Hour, "how long it is valid")
	return c
}

func newTokenListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the tokens there ever were",
		Long:    "List the tokens there ever were, without their secrets.",
		Example: "  assay access token list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a := &pb.ListTokensResponse{}
			query := map[string][]string{"page_size": {"1000"}}
			for {
				var page pb.ListTokensResponse
				if err := g.api(cmd.Context(), "GET", "tokens", query, nil, &page); err != nil {
					return err
				}
				a.Tokens = append(a.Tokens, page.Tokens...)
				if page.NextPageToken == "" {
					break
				}
				query["page_token"] = []string{page.NextPageToken}
			}
			return g.printProto(a, func(w io.Writer) {
				rows := [][]string{{"ID", "NAME", "GRANTS", "UNTIL", "MADE BY"}}
				for _, t := range a.Tokens {
					until := t.ExpiresAt.AsTime().Format(time.RFC3339)
					if t.RevokedAt != nil {
						until = "revoked " + t.RevokedAt.AsTime().Format(time.RFC3339)
					}
					rows = append(rows, []string{t.Id, t.Name, grantText(t.Grants), until, t.CreatedBy})
				}
				table(w, rows)
			})
		},
	}
}

func newTokenRevokeCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "Make a token useless at once",
		Long:    "Make a token useless at once. It stays in the record.",
		Example: "  assay access token revoke 0123456789abcdef",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var a pb.RevokeTokenResponse
			if err := g.api(cmd.Context(), "POST", "tokens/"+args[0]+"/revoke", nil, &pb.RevokeTokenRequest{}, &a); err != nil {
				return err
			}
			return g.printProto(&a, func(w io.Writer) {
				fmt.Fprintf(w, "token %s (%s) is revoked\n", a.Token.Id, a.Token.Name)
			})
		},
	}
}
