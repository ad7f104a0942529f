//! A struct of settings that can gain one without breaking its users: the fields are private, and
//! each has a method that reads it and one that sets it.

/// For the crates of this library.
#[doc(hidden)]
#[macro_export]
macro_rules! settings {
    (
        $(#[$doc:meta])* pub struct $name:ident;
        $($(#[$field_doc:meta])* $field:ident, $with:ident: $type:ty = $default:expr;)*
    ) => {
        $(#[$doc])*
        pub struct $name {
            $($field: $type,)*
        }

        impl $name {
            /// The defaults.
            pub const fn new() -> Self {
                $name { $($field: $default,)* }
            }

            $(
                $(#[$field_doc])*
                #[inline]
                pub const fn $field(&self) -> $type {
                    self.$field
                }

                #[doc = concat!("Returns a copy in which [`", stringify!($field), "`](Self::", stringify!($field), ") has this value.")]
                #[inline]
                #[must_use]
                pub const fn $with(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }

        impl Default for $name {
            #[inline]
            fn default() -> Self {
                $name::new()
            }
        }
    };
}
