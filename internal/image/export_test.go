package image

import "time"

// Impatient makes a store try again at once.
func Impatient(st *Store) *Store { st.pause = time.Millisecond; return st }
