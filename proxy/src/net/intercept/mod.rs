//! Interception: the redirection rules of a network namespace, as data, and the back ends that put them into the kernel.
