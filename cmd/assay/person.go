package main

import (
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/assay-dev/assay/proto/assay/v1"
)

func newPersonCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "person",
		Short: "The names of those who approve",
		Long: `The names of those who approve. Statements and the log have an opaque id and a
salted hash of the name; the name is in a table of the server from which it can
be erased without touching what was signed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newPersonEnrollCommand(g), newPersonShowCommand(g), newPersonEraseCommand(g))
	return c
}

func printPerson(w io.Writer, p *pb.Person) {
	name := p.GetName()
	switch {
	case p.GetErasedAt() != nil:
		name = "(erased " + p.GetErasedAt().AsTime().Format(time.DateOnly) + ")"
	case name == "":
		name = "(shown to auditors)"
	}
	fmt.Fprintf(w, "%s  %s  name hash %s, log leaf %d\n", p.GetId(), name, p.GetNameHash(), p.GetLogIndex())
}

func newPersonEnrollCommand(g *globals) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:     "enroll ID",
		Short:   "Record the name of a person",
		Long:    "Record the name of a person under an opaque id, which is the holder of the person's key in the trust file.",
		Example: `  assay person enroll p-17 --name "Ann Example"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var answer pb.EnrollPersonResponse
			if err := g.api(cmd.Context(), "POST", "persons", nil, &pb.EnrollPersonRequest{Id: args[0], Name: name}, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) { printPerson(w, answer.GetPerson()) })
		},
	}
	c.Flags().StringVar(&name, "name", "", "the printed name")
	c.MarkFlagRequired("name")
	return c
}

func newPersonShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show a person",
		Long:    "Show a person: the name to auditors, the hash of it to everybody.",
		Example: "  assay person show p-17",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var answer pb.GetPersonResponse
			if err := g.api(cmd.Context(), "GET", "persons/"+url.PathEscape(args[0]), nil, nil, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) { printPerson(w, answer.GetPerson()) })
		},
	}
}

func newPersonEraseCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "erase ID",
		Short:   "Forget the name of a person",
		Long:    "Forget the name of a person, and the salt without which the hash tells nothing. What was signed stays valid.",
		Example: "  assay person erase p-17",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var answer pb.ErasePersonResponse
			if err := g.api(cmd.Context(), "POST", "persons/"+url.PathEscape(args[0])+"/erase", nil, &pb.ErasePersonRequest{Id: args[0]}, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) { printPerson(w, answer.GetPerson()) })
		},
	}
}
